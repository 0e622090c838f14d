"""What a model must offer to be a target or a draft, and Flax Linen modules that offer it."""

import functools
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import Array
from jax.sharding import Mesh

from jspec.config import ModelConfig, Shape
from jspec.core.cache import Block, Cache
from jspec.parallel import sharding
from jspec.parallel.sharding import RULES, Rules, check, shardings

# A tree of arrays.
Params = Any


@struct.dataclass
class Output:
    """A forward pass.

    >>> output = target.model.forward(target.params, *one_token())
    >>> output.hidden.shape, output.hidden_states
    ((1, 1, 448), ())

    Attributes:
      hidden: `[B, T, D]`, of which `Model.logits` makes logits.
      block: the rows that the pass filled.
      hidden_states: the inputs of chosen layers, `[B, T, D]` each, for drafts that read them.
    """

    hidden: Array
    block: Block
    hidden_states: tuple[Array, ...] = ()


class Model(Protocol):
    """Pure functions of parameters. Hashable, so that jit takes it as a static argument.

    >>> output = target.model.forward(target.params, *one_token())
    >>> target.model.logits(target.params, output.hidden).shape
    (1, 1, 4096)
    """

    @property
    def config(self) -> ModelConfig | Shape:
        """Its sizes."""
        ...

    def init(self, key: Array) -> Params:
        """Fresh parameters."""
        ...

    def axes(self) -> Params:
        """The names of the axes of every parameter."""
        ...

    def forward(
        self,
        params: Params,
        tokens: Array,
        positions: Array,
        mask: Array,
        cache: Cache | None = None,
        block: Block | None = None,
        start: int = 0,
    ) -> Output:
        """Runs new rows over a cache that it does not write and a block that it returns.

        Args:
          tokens: `[B, T]`.
          positions: `[B, T]`, each row's place in its sequence.
          mask: `[T, start + T]` or `[B, T, start + T]`, which rows of the block a row sees: the end
            of its sequence, in order. It sees all committed rows of the cache. A model may see less
            than that, as with a sliding window, but never more.
          cache: committed rows; None for none.
          block: rows of earlier calls in its first `start` places; None when `start` is 0.
          start: the block's row at which the new ones are placed.
        """
        ...

    def logits(self, params: Params, hidden: Array) -> Array:
        """`[..., D]` -> `[..., V]` float32."""
        ...


class EmbeddingModel(Model, Protocol):
    """A model for which heads can be trained: it also offers its embedding."""

    def embed(self, params: Params, tokens: Array) -> Array:
        """The rows of the embedding, unscaled: `[B, T]` -> `[B, T, D]`."""
        ...


def one_token() -> tuple[Array, Array, Array]:
    """Tokens, positions and mask of the smallest forward pass, `[1, 1]` each."""
    one = jnp.zeros((1, 1), jnp.int32)
    return one, one, jnp.ones((1, 1), bool)


def row_dtype(params: Params, *, model: Model) -> jnp.dtype:
    """The dtype of the rows that a model makes, and so of its caches; nothing is computed."""
    return jax.eval_shape(model.forward, params, *one_token()).block.k[0].dtype


def init_params(
    model: "Model | LinenPart", key: Array, *, mesh: Mesh | None = None, rules: Rules = RULES
) -> Params:
    """Those of `model.init`; on a mesh each device makes its own pieces."""
    if mesh is None:
        return jax.jit(model.init)(key)
    check(mesh, model.config, rules)
    return jax.jit(model.init, out_shardings=shardings(mesh, model.axes(), rules))(key)


@dataclass(frozen=True)
class LinenPart:
    """A Linen module as pure functions of its parameters, which `_variables` makes from a key."""

    module: nn.Module
    config: ModelConfig | Shape

    def init(self, key: Array) -> Params:
        """Fresh parameters."""
        with _without_mesh():
            return nn.meta.unbox(self._variables(key))

    def axes(self) -> Params:
        """The names of the axes of every parameter."""
        with _without_mesh():
            return sharding.axes(jax.eval_shape(self._variables, jax.random.key(0)))

    def _apply(self, params: Params, *arguments: Any, method: str | None = None) -> Any:
        return self.module.apply({"params": params}, *arguments, method=method)

    def _variables(self, key: Array) -> Params:
        raise NotImplementedError


@dataclass(frozen=True)
class FlaxModel(LinenPart):
    """A Linen module whose `__call__` is `Model.forward` and whose `logits` is `Model.logits`."""

    def forward(
        self,
        params: Params,
        tokens: Array,
        positions: Array,
        mask: Array,
        cache: Cache | None = None,
        block: Block | None = None,
        start: int = 0,
    ) -> Output:
        """`Model.forward`."""
        return self._apply(params, tokens, positions, mask, cache, block, start)

    def logits(self, params: Params, hidden: Array) -> Array:
        """`Model.logits`."""
        return self._apply(params, hidden, method="logits")

    def _variables(self, key: Array) -> Params:
        return self.module.init(key, method=_call_everything)["params"]


def _call_everything(module: Any) -> Array | None:
    """Both methods on one token, which makes every parameter."""
    output = module(*one_token(), None, None, 0)
    hidden = getattr(output, "hidden", None)
    # If it is not `[1, 1, D]` there are no logits of it; `CheckedModel` reports it.
    return module.logits(hidden) if getattr(hidden, "shape", ())[:-1] == (1, 1) else None


# With a mesh in context, Flax takes the names of a user's axes for axes of the mesh.
_without_mesh = functools.partial(jax.sharding.use_abstract_mesh, jax.sharding.AbstractMesh((), ()))

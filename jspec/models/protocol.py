"""What a model must offer to be a target or a draft, and Flax Linen modules that offer it.

Fresh parameters, made where they are to lie.
"""

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

Params = Any
# With one in context, Flax takes the names that a user's parameters have for those of its axes.
_without_mesh = functools.partial(jax.sharding.use_abstract_mesh, jax.sharding.AbstractMesh((), ()))


@struct.dataclass
class Output:
    """A forward pass: `hidden` `[B, T, D]`, the `block` it filled, and `features` for drafts, what
    chosen layers read, `[B, T, D]` each."""

    hidden: Array
    block: Block
    features: tuple[Array, ...] = ()


class Model(Protocol):
    """Pure functions of parameters. Hashable, so that jit takes it as a static argument."""

    config: ModelConfig | Shape

    def init(self, key: Array) -> Params:
        """Fresh parameters."""

    def axes(self) -> Params:
        """The names of the axes of every parameter."""

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
            of its sequence, in order; of the cache it sees all that is committed. A model may look
            less far than that, as with a sliding window, but never further.
          cache: committed rows, or none.
          block: rows of earlier calls in its first `start` places; none when `start` is 0.
          start: the block's row at which the new ones are placed.
        """

    def logits(self, params: Params, hidden: Array) -> Array:
        """`[..., D]` -> `[..., V]` float32."""


class EmbeddingModel(Model, Protocol):
    """A model that heads can be taught for: one that shows its embedding."""

    def embed(self, params: Params, tokens: Array) -> Array:
        """The rows of the embedding, as they are: `[B, T]` -> `[B, T, D]`."""


def one_token() -> tuple[Array, Array, Array]:
    """Tokens, positions and mask of the least forward pass, `[1, 1]` each."""
    one = jnp.zeros((1, 1), jnp.int32)
    return one, one, jnp.ones((1, 1), bool)


def row_dtype(params: Params, *, model: Model) -> jnp.dtype:
    """The dtype of the rows that a model makes, and so of its caches; nothing is computed."""
    return jax.eval_shape(model.forward, params, *one_token()).block.k[0].dtype


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

    def _variables(self, key: Array) -> Params:
        raise NotImplementedError


@dataclass(frozen=True)
class LinenModel(LinenPart):
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
        return self.module.apply({"params": params}, tokens, positions, mask, cache, block, start)

    def logits(self, params: Params, hidden: Array) -> Array:
        return self.module.apply({"params": params}, hidden, method="logits")

    def embed(self, params: Params, tokens: Array) -> Array:
        """`EmbeddingModel.embed`, of a module that has a method `look_up`."""
        return self.module.apply({"params": params}, tokens, method="look_up")

    def _variables(self, key: Array) -> Params:
        return self.module.init(key, method=_call_everything)["params"]


def _call_everything(module: nn.Module) -> Array | None:
    """Both methods on one token, which makes every parameter."""
    output = module(*one_token(), None, None, 0)
    hidden = getattr(output, "hidden", None)
    # Of what is not `[1, 1, D]` there are no logits; `CheckedModel` says so.
    return module.logits(hidden) if getattr(hidden, "shape", ())[:-1] == (1, 1) else None


def initial(model: Model, key: Array, *, mesh: Mesh | None = None, rules: Rules = RULES) -> Params:
    """Those of `model.init`; on a mesh each device makes its own pieces."""
    if mesh is None:
        return jax.jit(model.init)(key)
    check(mesh, model.config, rules)
    return jax.jit(model.init, out_shardings=shardings(mesh, model.axes(), rules))(key)

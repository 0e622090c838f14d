"""A user's own Flax modules as targets and drafts, with every answer checked as it is traced.

A module must offer `Model`'s two functions as methods: `__call__(tokens, positions, mask, cache,
block, start)`, which returns an `Output`, and `logits(hidden)`. `attend_layer` does what is the
same in every such module: it writes a layer's rows into the block and attends.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from jax import Array
from jax.sharding import PartitionSpec

from jspec.config import ModelConfig, Shape
from jspec.core.cache import Block, Cache
from jspec.models.protocol import FlaxModel, Model, Output, Params, one_token


@dataclass(frozen=True)
class CheckedModel:
    """`model`, whose answers are checked: errors name `name` and the method that is wrong."""

    model: Model
    name: str

    @property
    def config(self) -> ModelConfig | Shape:
        """`Model.config`."""
        return self.model.config

    def init(self, key: Array) -> Params:
        """`Model.init`."""
        params = self.model.init(key)
        output = jax.eval_shape(self.forward, params, *one_token())
        jax.eval_shape(self.logits, params, output.hidden)
        return params

    def axes(self) -> Params:
        """`Model.axes`."""
        return self.model.axes()

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
        # A tree may reach past the last position. Nothing there is accepted, but a table that is
        # too short may give NaN, which no mask would hide.
        positions = jnp.minimum(positions, self.config.max_position_embeddings - 1)
        arguments = params, tokens, positions, mask, cache, block, start
        output = self._ask("__call__", self.model.forward, *arguments)
        if not isinstance(output, Output):
            self._refuse("__call__", _words(output), "an Output with a Block")
        if not isinstance(output.block, Block):
            self._refuse("__call__", f"block {_words(output.block)}", "a Block")
        batch, new = tokens.shape
        if not _is_array(output.hidden) or output.hidden.shape[:-1] != (batch, new):
            self._refuse("__call__", f"hidden {_words(output.hidden)}", f"[{batch}, {new}, D]")
        rows = new if block is None else block.k[0].shape[2]
        wanted = batch, self.config.num_key_value_heads, rows, self.config.head_dim
        self._check_block(output.block, wanted, block or cache or output.block)
        return output

    def logits(self, params: Params, hidden: Array) -> Array:
        """`Model.logits`."""
        logits = self._ask("logits", self.model.logits, params, hidden)
        wanted = (*hidden.shape[:-1], self.config.vocab_size)
        if not _fits(logits, wanted, jnp.float32):
            got = f"{_words(logits)} for hidden {list(hidden.shape)}"
            self._refuse("logits", got, f"float32 {list(wanted)}")
        return logits

    def _ask(self, method: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a method returns. Linen raises its own errors for dropout and other variables."""
        try:
            return function(*arguments)
        except Exception as error:
            reason = str(error).strip().partition("\n")[0].partition(" (http")[0]
            raise ValueError(
                f"{self.name}.{method} raised {type(error).__name__} ({reason}): an answer from "
                "its parameters and arguments alone is asked for"
            ) from error

    def _check_block(self, block: Block, shape: tuple[int, ...], given: Block | Cache) -> None:
        """Raises `ValueError` unless the rows have this shape and the dtype of those `given`."""
        sides: dict[str, Any] = {"k": block.k, "v": block.v}
        layers = self.config.num_hidden_layers
        for side, held in sides.items():
            if not isinstance(held, tuple) or len(held) != layers:
                got = f"{len(held)} layers" if isinstance(held, tuple) else _words(held)
                wanted = f"a tuple of num_hidden_layers={layers} arrays"
                self._refuse("__call__", f"a block with {side} of {got}", wanted)
        first = given.k[0]
        floating = _is_array(first) and jnp.issubdtype(first.dtype, jnp.floating)
        dtype = first.dtype if floating else np.dtype("float32")
        for side, held in sides.items():
            for layer, array in enumerate(held):
                if not _fits(array, shape, dtype):
                    got = f"a block with {side}[{layer}] {_words(array)}"
                    self._refuse("__call__", got, f"{dtype} {list(shape)}")

    def _refuse(self, method: str, returned: str, wanted: str) -> NoReturn:
        raise ValueError(f"{self.name}.{method} returned {returned}: {wanted} is asked for")


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray)


def _fits(x: Any, shape: tuple[int, ...], dtype: Any) -> bool:
    return _is_array(x) and x.shape == shape and x.dtype == dtype


def _words(x: Any) -> str:
    """An array's dtype and shape, or the type of anything else."""
    return f"{x.dtype} {list(x.shape)}" if _is_array(x) else type(x).__name__


ARGUMENTS = {
    "__call__": ("tokens", "positions", "mask", "cache", "block", "start"),
    "logits": ("hidden",),
}


def from_linen(module: nn.Module, shape: Shape) -> CheckedModel:
    """A Linen module as a model; its parameters are those of `model.init`, or trained elsewhere.

    Parameters are its only variables: dropout is off, and there are no running statistics. A method
    that does not follow `Model` raises a `ValueError`, here or as the model is traced, which names
    the method and what it returned or raised.

    Example::

        import flax.linen as nn
        import jax, jax.numpy as jnp
        import jspec

        class Tiny(nn.Module):
            def setup(self):
                self.embedding = nn.Embed(61, 32)
                self.places = nn.Embed(512, 32)
                self.qkv = nn.DenseGeneral((3, 4, 8))
                self.out = nn.DenseGeneral(32, axis=(-2, -1))
                self.head = nn.Dense(61)

            def __call__(self, tokens, positions, mask, cache=None, block=None, start=0):
                x = self.embedding(tokens) + self.places(positions)
                query, key, value = jnp.moveaxis(self.qkv(x), (2, 3), (0, 2))
                mixed, (k, v) = jspec.attend_layer(
                    query, key, value, mask, cache, block, start, layer=0
                )
                x = x + self.out(mixed.swapaxes(1, 2))
                return jspec.Output(x, jspec.Block((k,), (v,)))

            def logits(self, hidden):
                return self.head(hidden)

        shape = jspec.Shape(
            vocab_size=61, num_hidden_layers=1, num_key_value_heads=4, head_dim=8,
            max_position_embeddings=512,
        )
        model = jspec.from_linen(Tiny(), shape)
        params = model.init(jax.random.key(0))
    """
    _check_methods(module, nn.Module)
    return CheckedModel(FlaxModel(module, shape), type(module).__name__)


def from_nnx(module: nnx.Module, shape: Shape) -> tuple[CheckedModel, Params]:
    """An NNX module as a model, and its variables: its parameters, and the rest.

    What a call changes in the module is discarded, so put it into evaluation mode first. Raises as
    `from_linen` does.

    Example::

        import jax, jax.numpy as jnp
        import jspec
        from flax import nnx

        class Tiny(nnx.Module):
            def __init__(self, rngs):
                self.embedding = nnx.Embed(61, 32, rngs=rngs)
                self.places = nnx.Embed(512, 32, rngs=rngs)
                self.qkv = nnx.LinearGeneral(32, (3, 4, 8), rngs=rngs)
                self.out = nnx.LinearGeneral((4, 8), 32, axis=(-2, -1), rngs=rngs)
                self.head = nnx.Linear(32, 61, rngs=rngs)

            def __call__(self, tokens, positions, mask, cache=None, block=None, start=0):
                x = self.embedding(tokens) + self.places(positions)
                query, key, value = jnp.moveaxis(self.qkv(x), (2, 3), (0, 2))
                mixed, (k, v) = jspec.attend_layer(
                    query, key, value, mask, cache, block, start, layer=0
                )
                x = x + self.out(mixed.swapaxes(1, 2))
                return jspec.Output(x, jspec.Block((k,), (v,)))

            def logits(self, hidden):
                return self.head(hidden)

        shape = jspec.Shape(
            vocab_size=61, num_hidden_layers=1, num_key_value_heads=4, head_dim=8,
            max_position_embeddings=512,
        )
        model, params = jspec.from_nnx(Tiny(nnx.Rngs(0)), shape)
    """
    _check_methods(module, nnx.Module)
    graph, weights, rest = nnx.split(module, nnx.Param, ...)
    specs, structure = jax.tree.flatten(
        nnx.get_partition_spec((weights, rest)), is_leaf=lambda leaf: leaf is None
    )
    model = NnxModel(graph, shape, type(module).__name__, tuple(specs), structure)
    return CheckedModel(model, model.name), (weights, rest)


@dataclass(frozen=True)
class NnxModel:
    """An NNX module without its variables, which are the parameters `(weights, rest)`."""

    graph: nnx.GraphDef[Any]
    config: Shape
    name: str
    specs: tuple[PartitionSpec | None, ...]
    structure: Any

    def init(self, key: Array) -> Params:  # noqa: ARG002
        """Raises `ValueError`: `from_nnx` returned the parameters."""
        raise ValueError(
            f"model.init: {self.name} was made with its parameters, which from_nnx returned; for "
            "fresh ones make another module"
        )

    def axes(self) -> Params:
        """`Model.axes`."""
        return jax.tree.unflatten(self.structure, self.specs)

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
        return nnx.merge(self.graph, *params)(tokens, positions, mask, cache, block, start)

    def logits(self, params: Params, hidden: Array) -> Array:
        """`Model.logits`."""
        return nnx.merge(self.graph, *params).logits(hidden)


def _check_methods(module: Any, kind: type) -> None:
    """Raises `ValueError` unless `module` is a `kind` whose methods take `ARGUMENTS`."""
    if not isinstance(module, kind):
        what = module.__name__ if isinstance(module, type) else type(module).__name__
        raise ValueError(f"module={what}: an instance of {kind.__module__}.Module is asked for")
    name = type(module).__name__
    for method, arguments in ARGUMENTS.items():
        asked = f"{name}.{method}({', '.join(arguments)}) is asked for"
        offered = getattr(module, method, None)
        if offered is None:
            raise ValueError(f"{name} has no {method}: {asked}")
        try:
            inspect.signature(offered).bind(*arguments)
        except TypeError as error:
            raise ValueError(f"{name}.{method}: {error}; {asked}") from error

"""A user's own Flax modules as models, to be targets and drafts.

What a module must offer is `Model`'s two functions as its methods: `__call__(tokens, positions,
mask, cache, block, start)`, which returns an `Output`, and `logits(hidden)`. `attend_layer` does
what is the same in every such module: it places a layer's rows in the block and attends.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import jax
from flax import linen as nn
from flax import nnx
from jax import Array
from jax.sharding import PartitionSpec

from jspec.cache import Block, Cache
from jspec.config import Shape
from jspec.models.checked import CheckedModel
from jspec.models.protocol import LinenModel, Output, Params

ARGUMENTS = {
    "__call__": ("tokens", "positions", "mask", "cache", "block", "start"),
    "logits": ("hidden",),
}


def from_linen(module: nn.Module, shape: Shape) -> CheckedModel:
    """A Linen module as a model; its parameters are those of `model.init`, or trained elsewhere.

    It has parameters alone: no dropout that is on, no running statistics. Breaking the Protocol
    raises a `ValueError`, here or as the model is traced, which names the method and what it
    returned or raised.

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

        shape = jspec.Shape(vocabulary=61, layers=1, kv_heads=4, channels=8, context=512)
        model = jspec.from_linen(Tiny(), shape)
        params = model.init(jax.random.key(0))
    """
    _check_methods(module, nn.Module)
    return CheckedModel(LinenModel(module, shape), type(module).__name__)


def from_nnx(module: nnx.Module, shape: Shape) -> tuple[CheckedModel, Params]:
    """An NNX module as a model, and what it holds: its parameters, and the rest of its variables.

    What a call changes in the module is forgotten, so it is to be in its mode of evaluation.
    Breaking the Protocol raises as `from_linen` says.

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

        shape = jspec.Shape(vocabulary=61, layers=1, kv_heads=4, channels=8, context=512)
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
    structure: jax.tree_util.PyTreeDef

    def init(self, key: Array) -> Params:
        raise ValueError(
            f"model.init: {self.name} was made with its parameters, which from_nnx returned; for "
            "fresh ones make another module"
        )

    def axes(self) -> Params:
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
        return nnx.merge(self.graph, *params)(tokens, positions, mask, cache, block, start)

    def logits(self, params: Params, hidden: Array) -> Array:
        return nnx.merge(self.graph, *params).logits(hidden)


def _check_methods(module: Any, kind: type) -> None:
    """Raises `ValueError` unless `module` is one of its kind whose methods take what they get."""
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

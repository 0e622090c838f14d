"""A model that is held to the Protocol: each of its answers is checked as it is traced."""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from jspec.cache import Block, Cache
from jspec.config import ModelConfig, Shape
from jspec.models.protocol import Model, Output, Params


@dataclass(frozen=True)
class CheckedModel:
    """`model`, whose errors name `name` and the method that broke the Protocol."""

    model: Model
    name: str

    @property
    def config(self) -> ModelConfig | Shape:
        return self.model.config

    def init(self, key: Array) -> Params:
        return self.model.init(key)

    def axes(self) -> Params:
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
        # A tree may reach past the context. What stands there is never kept, but a table that has
        # no such row may give NaN, which no mask would hide.
        positions = jnp.minimum(positions, self.config.context - 1)
        output = self.model.forward(params, tokens, positions, mask, cache, block, start)
        method = f"{self.name}.__call__"
        if not isinstance(output, Output) or not isinstance(output.block, Block):
            got = type(output).__name__
            raise ValueError(f"{method} returned {got}: an Output with a Block is asked for")
        hidden = output.hidden.shape
        if len(hidden) != 3 or hidden[:2] != tokens.shape:
            batch, new = tokens.shape
            raise ValueError(
                f"{method} returned hidden {list(hidden)}: [{batch}, {new}, D] is asked for"
            )
        rows = tokens.shape[1] if block is None else block.k[0].shape[2]
        self._check_block(method, output.block, tokens.shape[0], rows)
        return output

    def logits(self, params: Params, hidden: Array) -> Array:
        logits = self.model.logits(params, hidden)
        wanted = (*hidden.shape[:-1], self.config.vocabulary)
        if logits.shape != wanted or logits.dtype != jnp.float32:
            raise ValueError(
                f"{self.name}.logits returned {logits.dtype} {list(logits.shape)} for hidden "
                f"{list(hidden.shape)}: float32 {list(wanted)} is asked for"
            )
        return logits

    def _check_block(self, method: str, block: Block, batch: int, rows: int) -> None:
        layers = self.config.layers
        wanted = batch, self.config.kv_heads, rows, self.config.channels
        for side in ("k", "v"):
            held = getattr(block, side)
            if len(held) != layers:
                raise ValueError(
                    f"{method} returned a block with {side} of {len(held)} layers: "
                    f"layers={layers} are asked for"
                )
            for layer, array in enumerate(held):
                if array.shape != wanted:
                    raise ValueError(
                        f"{method} returned a block with {side}[{layer}] {list(array.shape)}: "
                        f"{list(wanted)} is asked for"
                    )

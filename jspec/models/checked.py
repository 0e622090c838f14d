"""A model that is held to the Protocol: each of its answers is checked as it is traced."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jspec.cache import Block, Cache
from jspec.config import ModelConfig, Shape
from jspec.models.protocol import Model, Output, Params, one_token


@dataclass(frozen=True)
class CheckedModel:
    """`model`, whose errors name `name` and the method that broke the Protocol."""

    model: Model
    name: str

    @property
    def config(self) -> ModelConfig | Shape:
        return self.model.config

    def init(self, key: Array) -> Params:
        params = self.model.init(key)
        output = jax.eval_shape(self.forward, params, *one_token())
        jax.eval_shape(self.logits, params, output.hidden)
        return params

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
        wanted = batch, self.config.kv_heads, rows, self.config.channels
        self._check_block(output.block, wanted, block or cache or output.block)
        return output

    def logits(self, params: Params, hidden: Array) -> Array:
        logits = self._ask("logits", self.model.logits, params, hidden)
        wanted = (*hidden.shape[:-1], self.config.vocabulary)
        if not _fits(logits, wanted, jnp.float32):
            got = f"{_words(logits)} for hidden {list(hidden.shape)}"
            self._refuse("logits", got, f"float32 {list(wanted)}")
        return logits

    def _ask(self, method: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a method returns. Linen has errors of its own for dropout and other variables."""
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
        sides = {"k": block.k, "v": block.v}
        for side, held in sides.items():
            if not isinstance(held, tuple) or len(held) != self.config.layers:
                got = f"{len(held)} layers" if isinstance(held, tuple) else _words(held)
                wanted = f"a tuple of layers={self.config.layers} arrays"
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
    """An array's dtype and shape, or the type of what is none."""
    return f"{x.dtype} {list(x.shape)}" if _is_array(x) else type(x).__name__

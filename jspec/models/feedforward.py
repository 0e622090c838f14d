"""Feed-forward networks: gated, and plain."""

import functools
from collections.abc import Callable

import jax
from flax import linen as nn
from jax import Array

from jspec.config import ModelConfig
from jspec.models.linear import Linear

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": nn.silu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": nn.relu,
}


class GatedFeedForward(nn.Module):
    """`down(activation(gate(x)) * up(y))`, where `y` is `x` if it is not another.

    Attributes:
      out: how wide the result is; None for D.
    """

    config: ModelConfig
    out: int | None = None

    @nn.compact
    def __call__(self, x: Array, y: Array | None = None) -> Array:
        c = self.config
        gate = ACTIVATIONS[c.activation](_widen(c, "gate")(x))
        return _narrow(c, self.out)(gate * _widen(c, "up")(x if y is None else y))


class PlainFeedForward(nn.Module):
    """`down(activation(up(x)))`."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        return _narrow(c)(ACTIVATIONS[c.activation](_widen(c, "up")(x)))


def _widen(c: ModelConfig, name: str) -> Linear:
    return Linear(c.feedforward, ("feedforward", "width"), c.feedforward_bias, name=name)


def _narrow(c: ModelConfig, out: int | None = None) -> Linear:
    return Linear(out or c.width, ("width", "feedforward"), c.feedforward_bias, name="down")

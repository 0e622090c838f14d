"""Norms over the last axis, all computed in float32."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jspec.sharding import named


class RMSNorm(nn.Module):
    """Divides by the root mean square; what is rounded to `x`'s dtype is then weighted."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        weight = self.param("weight", named(nn.initializers.ones, None), (x.shape[-1],))
        return _unit(x.astype(jnp.float32), self.epsilon).astype(x.dtype) * _along(weight, x)


class PlusOneRMSNorm(nn.Module):
    """Divides by the root mean square and multiplies by `1 + weight` before it is rounded."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        weight = self.param("weight", named(nn.initializers.zeros, None), (x.shape[-1],))
        unit = _unit(x.astype(jnp.float32), self.epsilon)
        return (unit * (1.0 + _along(weight.astype(jnp.float32), x))).astype(x.dtype)


class LayerNorm(nn.Module):
    """Subtracts the mean, divides by the standard deviation, and has a bias."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        weight = self.param("weight", named(nn.initializers.ones, None), (x.shape[-1],))
        bias = self.param("bias", named(nn.initializers.zeros, None), (x.shape[-1],))
        wide = x.astype(jnp.float32)
        unit = _unit(wide - wide.mean(axis=-1, keepdims=True), self.epsilon)
        weight, bias = (_along(p.astype(jnp.float32), x) for p in (weight, bias))
        return (unit * weight + bias).astype(x.dtype)


NORMS: dict[str, Callable[..., nn.Module]] = {
    "rms": RMSNorm,
    "rms_plus_one": PlusOneRMSNorm,
    "layer": LayerNorm,
}


def _unit(wide: Array, epsilon: float) -> Array:
    return wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)


def _along(weight: Array, x: Array) -> Array:
    """`weight` as it multiplies the last axis of `x`."""
    return weight.reshape((1,) * (x.ndim - 1) + weight.shape)

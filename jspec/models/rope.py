"""Rotary positions: angles, how they are stretched, and turning channels by them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jspec.config import RopeScaling

Turn = tuple[Array, Array]


def turns(positions: Array, channels: int, theta: float, scaling: RopeScaling | None) -> Turn:
    """Cosines and sines of the rotary angles at `[B, T]`: `[B, 1, T, C / 2]` float32 each."""
    exponents = np.arange(0, channels, 2, dtype=np.float64) / channels
    frequencies = theta**-exponents
    if scaling is not None:
        frequencies = _stretch(frequencies, scaling)
    rates = frequencies.astype(np.float32)[None, None, None]
    angles = positions[:, None, :, None].astype(jnp.float32) * rates

    def turned() -> Turn:
        return jnp.cos(angles), jnp.sin(angles)

    def nowhere() -> Turn:
        return jnp.ones_like(angles), jnp.zeros_like(angles)

    # No position lies below 0, but XLA does not know it: what a branch gives it keeps, where it
    # would else compute the angles anew in every layer, for every head.
    return jax.lax.cond(jnp.all(positions >= 0), turned, nowhere)


def rotate(x: Array, turn: Turn) -> Array:
    """Turns channel pairs `(c, c + C / 2)` of `[B, H, T, C]` by their angles."""
    cos, sin = turn
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return turned.astype(x.dtype)


def _stretch(frequencies: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Divides frequencies by the factor: all of them, or (Llama 3.1) the slow ones, with a ramp."""
    slow = frequencies / scaling.factor
    if scaling.linear:
        return slow
    turns = scaling.original_context * frequencies / (2 * math.pi)
    ramp = (turns - scaling.low_frequency) / (scaling.high_frequency - scaling.low_frequency)
    fast = np.clip(ramp, 0.0, 1.0)
    return fast * frequencies + (1 - fast) * slow

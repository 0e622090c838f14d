"""What a step lowers. Every loss is a mean over the tokens that count."""

import jax.numpy as jnp
import optax
from jax import Array


def cross_entropy(logits: Array, targets: Array, weight: Array) -> Array:
    """Mean negative log-likelihood in nats: `[B, T, V]` float32, `[B, T]`, `[B, T]` -> `[]`."""
    per_token = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return (per_token * weight).sum() / jnp.maximum(weight.sum(), 1.0)

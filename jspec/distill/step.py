"""One training step, over the very model code that decodes."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from jspec.distill.losses import cross_entropy
from jspec.models.protocol import Model, Params


@struct.dataclass
class TrainState:
    """What a checkpoint holds."""

    step: Array
    params: Params
    optimizer: Any


def start(params: Params, *, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.int32(0), params, optimizer.init(params))


def step(
    state: TrainState, tokens: Array, *, model: Model, optimizer: optax.GradientTransformation
) -> tuple[TrainState, dict[str, Array]]:
    """Lowers the loss on `tokens` `[B, T + 1]` once."""
    value, gradients = jax.value_and_grad(loss)(state.params, tokens, model=model)
    updates, memory = optimizer.update(gradients, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {"loss": value, "gradient_norm": optax.tree.norm(gradients)}
    return TrainState(state.step + 1, params, memory), metrics


def loss(params: Params, tokens: Array, *, model: Model) -> Array:
    """Mean negative log-likelihood of each token of `[B, T + 1]` given those before it."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    length = inputs.shape[1]
    positions = jnp.broadcast_to(jnp.arange(length), inputs.shape)
    causal = jnp.tril(jnp.ones((length, length), bool))
    output = model.forward(params, inputs, positions, causal)
    logits = model.logits(params, output.hidden)
    return cross_entropy(logits, targets, jnp.ones(targets.shape))

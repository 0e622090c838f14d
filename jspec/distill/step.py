"""One training step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from jspec.distill.batch import Batch
from jspec.distill.objective import Objective
from jspec.models.protocol import Params


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
    state: TrainState,
    frozen: Params,
    batch: Batch,
    *,
    objective: Objective,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, Array]]:
    """Lowers the objective on `batch` once."""
    gradient = jax.value_and_grad(objective, has_aux=True)
    (value, measures), gradients = gradient(state.params, frozen, batch)
    updates, memory = optimizer.update(gradients, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {"loss": value, "gradient_norm": optax.tree.norm(gradients), **measures}
    return TrainState(state.step + 1, params, memory), metrics

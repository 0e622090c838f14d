"""One training step: the optimizer, the state, and the compiled program, with a mesh or without."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from optax.contrib import MuonDimensionNumbers, muon

from jspec.models.protocol import Params
from jspec.parallel.sharding import shardings
from jspec.training.data import Batch
from jspec.training.means import Mean, Means, num_counted
from jspec.training.objectives import Objective
from jspec.training.recipe import Recipe


def make_optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """Gradient clipping, then the recipe's optimizer, once every so many batches."""
    # Both kinds of clipping are always there, so that a run can resume with other limits.
    rule = optax.chain(
        optax.clip_by_global_norm(recipe.max_grad_norm or math.inf),
        optax.clip(recipe.max_grad_value or math.inf),
        OPTIMIZERS[recipe.optimizer](learning_rate_schedule(recipe), recipe.weight_decay),
    )
    if recipe.gradient_accumulation_steps > 1:
        return _accumulate(rule, recipe.gradient_accumulation_steps)
    return rule


def _accumulate(
    rule: optax.GradientTransformation, batches: int
) -> optax.GradientTransformationExtraArgs:
    """The rule, on the mean gradient over all targets of several batches: gradients are added up by
    the targets that they count, beside the number of these."""

    def start(params: Any) -> Any:
        return rule.init(params[0])

    def divide(updates: Any, state: Any, params: Any = None) -> Any:
        gradients, counted = updates
        mean = jax.tree.map(lambda x: x / jnp.maximum(counted, 1.0), gradients)
        moves, state = rule.update(mean, state, params[0])
        return (moves, jnp.zeros_like(counted)), state

    summed = optax.MultiSteps(
        optax.GradientTransformation(start, divide), batches, use_grad_mean=False
    )

    def init(params: Any) -> Any:
        return summed.init((params, jnp.float32(0)))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        counted = extra["counted"]
        sums: Any = (jax.tree.map(lambda x: x * counted, updates), counted)
        pair, state = summed.update(sums, state, (params, jnp.float32(0)))
        moves: Any = pair
        return moves[0], state

    return optax.GradientTransformationExtraArgs(init, update)


def learning_rate_schedule(recipe: Recipe) -> optax.Schedule:
    """The learning rate by step: linear warm-up, constant, then the recipe's cooldown.

    With accumulated gradients, steps are those of the optimizer.
    """
    accumulated = recipe.gradient_accumulation_steps
    steps, warmup = -(-recipe.steps // accumulated), -(-recipe.warmup_steps // accumulated)
    falling = max(1, round(steps * recipe.cooldown))
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, recipe.learning_rate, warmup),
            optax.constant_schedule(recipe.learning_rate),
            SCHEDULES[recipe.schedule](recipe.learning_rate, falling),
        ],
        [warmup, steps - falling],
    )


SCHEDULES: Mapping[str, Callable[[float, int], optax.Schedule]] = {
    "linear": lambda peak, steps: optax.linear_schedule(peak, 0.0, steps),
    "cosine": optax.cosine_decay_schedule,
    "constant": lambda peak, _: optax.constant_schedule(peak),
}


def _muon(rate: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    """Muon for the matrices of the layers and AdamW for the rest.

    Both use the same rate: Muon's updates are scaled to the size of Adam's
    (https://arxiv.org/abs/2502.16982, equation 4).
    """
    return muon(
        rate,
        weight_decay=weight_decay,
        adam_b1=0.9,
        adam_b2=0.95,
        muon_weight_dimension_numbers=_layer_matrices,
        consistent_rms=0.2,
    )


def _adamw(rate: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    return optax.adamw(rate, b1=0.9, b2=0.95, weight_decay=weight_decay)


OPTIMIZERS: Mapping[str, Callable[[optax.Schedule, float], optax.GradientTransformation]] = {
    "muon": _muon,
    "adamw": _adamw,
}


def _layer_matrices(params: Any) -> Any:
    """Which axes of a parameter Muon makes orthogonal: `[out, in]` of the layers' matrices."""

    def axes(path: tuple[Any, ...], param: jax.Array) -> MuonDimensionNumbers | None:
        outside = {"embedding", "positions", "head"} & {getattr(part, "key", "") for part in path}
        return None if outside or param.ndim != 2 else MuonDimensionNumbers(1, 0)

    return jax.tree_util.tree_map_with_path(axes, params)


@struct.dataclass
class TrainState:
    """What a checkpoint holds."""

    step: Array
    params: Params
    optimizer: Any


def init_state(params: Params, *, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.int32(0), params, optimizer.init(params))


def train_step(
    state: TrainState,
    frozen: Any,
    batch: Batch,
    *,
    objective: Objective,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Means]:
    """One update on `batch`: the new state, and the objective's means beside `grad_norm`.

    A batch of which the loss counts nothing changes nothing but the number of the step. An
    optimizer that takes `counted` hears how many targets the loss counts.
    """
    optimizer = optax.with_extra_args_support(optimizer)
    gradient = jax.value_and_grad(objective, has_aux=True)
    (_, means), gradients = gradient(state.params, frozen, batch)
    counted = num_counted(means)
    # Optax multiplies whole numbers with others.
    with jax.numpy_dtype_promotion("standard"):
        updates, memory = optimizer.update(
            gradients, state.optimizer, state.params, counted=counted
        )
    new = optax.apply_updates(state.params, updates), memory
    params, memory = jax.tree.map(
        functools.partial(jnp.where, counted > 0), new, (state.params, state.optimizer)
    )
    means = {**means, "grad_norm": Mean(optax.tree.norm(gradients), jnp.sign(counted))}
    return TrainState(state.step + 1, params, memory), means


class TrainProgram(NamedTuple):
    """`init_state` and `train_step`, compiled. `step` donates the state that it is given; `norm` is
    that of a state's parameters."""

    start: Callable[[Params], TrainState]
    step: Callable[[TrainState, Any, Batch], tuple[TrainState, Means]]
    norm: Callable[[TrainState], Array]


def compile_program(
    params: Params,
    frozen: Any,
    *,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None = None,
) -> TrainProgram:
    """The program for parameters with these shapes and shardings; compiled at its first call.

    On a mesh the optimizer's state of a parameter has the sharding of the parameter, and the rows
    of a batch are split over the data axes.
    """
    start = functools.partial(init_state, optimizer=optimizer)
    step = functools.partial(train_step, objective=objective, optimizer=optimizer)
    in_shardings, out_shardings, of_state = None, None, None
    if mesh is not None:
        replicated = NamedSharding(mesh, PartitionSpec())
        of_state = state_shardings(jax.eval_shape(start, params), params, replicated)
        of_frozen = jax.tree.map(lambda x: x.sharding, frozen)
        in_shardings = (of_state, of_frozen, batch_shardings(mesh))
        out_shardings = (of_state, replicated)
    start = jax.jit(start, out_shardings=of_state)
    return TrainProgram(
        # The state is donated at every step, and the caller keeps their own parameters.
        start=lambda params: start(jax.tree.map(jnp.copy, params)),
        step=jax.jit(
            step, in_shardings=in_shardings, out_shardings=out_shardings, donate_argnums=0
        ),
        norm=jax.jit(lambda state: optax.tree.norm(state.params)),
    )


def batch_shardings(mesh: Mesh) -> Batch:
    """The sharding of each array of a batch: rows over the data axes."""
    return Batch(*[shardings(mesh, PartitionSpec("batch"))] * len(Batch._fields))


def state_shardings(state: TrainState, params: Params, replicated: NamedSharding) -> Any:
    """The sharding of each array of a state: that of the parameter with its name and shape.

    Arrays that belong to no parameter are `replicated`.
    """
    known = {
        tuple(path): (param.shape, param.sharding)
        for path, param in jax.tree_util.tree_flatten_with_path(params)[0]
    }

    def sharding(path: tuple[Any, ...], x: jax.ShapeDtypeStruct) -> NamedSharding:
        for length in range(len(path), 0, -1):
            shape, place = known.get(tuple(path[-length:]), (None, replicated))
            if shape == x.shape:
                return place
        return replicated

    return jax.tree_util.tree_map_with_path(sharding, state)

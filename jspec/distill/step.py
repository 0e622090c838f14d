"""One training step, and its program on a mesh or without one."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jspec.distill.batch import Batch
from jspec.distill.objective import Measures, Objective
from jspec.models.protocol import Params
from jspec.parallel.sharding import shardings


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
) -> tuple[TrainState, Measures]:
    """Lowers the objective on `batch` once."""
    gradient = jax.value_and_grad(objective, has_aux=True)
    (value, measures), gradients = gradient(state.params, frozen, batch)
    updates, memory = optimizer.update(gradients, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {"loss": value, "gradient_norm": optax.tree.norm(gradients), **measures}
    return TrainState(state.step + 1, params, memory), metrics


class Program(NamedTuple):
    """`start` and `step`, compiled; a state that is given to `step` is used up."""

    start: Callable[[Params], TrainState]
    step: Callable[[TrainState, Params, Batch], tuple[TrainState, Measures]]
    norm: Callable[[TrainState], Array]


def program(
    params: Params,
    frozen: Params,
    *,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None = None,
) -> Program:
    """The program of a step for parameters that lie where these do.

    On a mesh the optimizer's memory of a parameter lies where the parameter does, and the rows of a
    batch over the axes of the data.
    """
    begin = functools.partial(start, optimizer=optimizer)
    advance = functools.partial(step, objective=objective, optimizer=optimizer)
    homes, lessons, taught = None, None, None
    if mesh is not None:
        everywhere = NamedSharding(mesh, PartitionSpec())
        homes = whereabouts(jax.eval_shape(begin, params), params, everywhere)
        taught = jax.tree.map(lambda x: x.sharding, frozen)
        lessons = Batch(*[shardings(mesh, PartitionSpec("batch"))] * len(Batch._fields))
    begin = jax.jit(begin, out_shardings=homes)
    return Program(
        # The state is given away at every step; the caller keeps what is theirs.
        start=lambda params: begin(jax.tree.map(jnp.copy, params)),
        step=jax.jit(
            advance,
            in_shardings=None if mesh is None else (homes, taught, lessons),
            out_shardings=None if mesh is None else (homes, NamedSharding(mesh, PartitionSpec())),
            donate_argnums=0,
        ),
        norm=jax.jit(lambda state: optax.tree.norm(state.params)),
    )


def whereabouts(state: TrainState, params: Params, everywhere: NamedSharding) -> Any:
    """Where each array of a state lies: with the parameter that it belongs to by name and shape.

    What belongs to none lies `everywhere`.
    """
    known = {
        tuple(path): (param.shape, param.sharding)
        for path, param in jax.tree_util.tree_flatten_with_path(params)[0]
    }

    def home(path: tuple[Any, ...], x: jax.ShapeDtypeStruct) -> NamedSharding:
        for length in range(len(path), 0, -1):
            shape, place = known.get(tuple(path[-length:]), (None, everywhere))
            if shape == x.shape:
                return place
        return everywhere

    return jax.tree_util.tree_map_with_path(home, state)

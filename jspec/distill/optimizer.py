"""The rules by which a step moves parameters, and how fast."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon


class Plan(Protocol):
    """The fields of a recipe that say how parameters move."""

    steps: int
    accumulate: int
    optimizer: str
    learning_rate: float
    warmup: int
    schedule: str
    cooldown: float
    weight_decay: float
    clip: float
    clip_value: float


def optimizer(plan: Plan) -> optax.GradientTransformation:
    """What the plan asks for: clipping, then the optimizer, once in so many batches."""
    # Both are there, so that a run can go on with others than it began with.
    rule = optax.chain(
        optax.clip_by_global_norm(plan.clip or math.inf),
        optax.clip(plan.clip_value or math.inf),
        OPTIMIZERS[plan.optimizer](schedule(plan), plan.weight_decay),
    )
    if plan.accumulate > 1:
        return optax.MultiSteps(rule, plan.accumulate).gradient_transformation()
    return rule


def schedule(plan: Plan) -> optax.Schedule:
    """The learning rate by the step: linear warm-up, constant, and the plan's end.

    With gradients accumulated, both are counted in steps of the optimizer.
    """
    steps, warmup = -(-plan.steps // plan.accumulate), -(-plan.warmup // plan.accumulate)
    falling = max(1, round(steps * plan.cooldown))
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, plan.learning_rate, warmup),
            optax.constant_schedule(plan.learning_rate),
            SCHEDULES[plan.schedule](plan.learning_rate, falling),
        ],
        [warmup, steps - falling],
    )


SCHEDULES: Mapping[str, Callable[[float, int], optax.Schedule]] = {
    "linear": lambda peak, steps: optax.linear_schedule(peak, 0.0, steps),
    "cosine": lambda peak, steps: optax.cosine_decay_schedule(peak, steps),
    "constant": lambda peak, steps: optax.constant_schedule(peak),
}


def _muon(rate: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    """Muon for the layers' matrices and AdamW for the rest.

    Both take the same rate: Muon's updates are scaled to the size of Adam's
    (https://arxiv.org/abs/2502.16982, equation 4).
    """
    return muon(
        rate,
        weight_decay=weight_decay,
        adam_b1=0.9,
        adam_b2=0.95,
        muon_weight_dimension_numbers=_matrices,
        consistent_rms=0.2,
    )


def _adamw(rate: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    return optax.adamw(rate, b1=0.9, b2=0.95, weight_decay=weight_decay)


OPTIMIZERS: Mapping[str, Callable[[optax.Schedule, float], optax.GradientTransformation]] = {
    "muon": _muon,
    "adamw": _adamw,
}


def _matrices(params: Any) -> Any:
    """Which axes of a parameter Muon makes orthogonal: `[out, in]` of the layers', no other's."""

    def axes(path: tuple[Any, ...], param: jax.Array) -> MuonDimensionNumbers | None:
        outside = {"embedding", "positions", "head"} & {getattr(part, "key", "") for part in path}
        return None if outside or param.ndim != 2 else MuonDimensionNumbers(1, 0)

    return jax.tree_util.tree_map_with_path(axes, params)

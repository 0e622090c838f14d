"""A training run, as data: what `configs/NAME.py` returns and the command line overrides."""

from dataclasses import dataclass
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from jspec.config import ModelConfig


@dataclass(frozen=True)
class Recipe:
    """Ordinary language-model training on the zoo's corpus.

    Attributes:
      name: the run's folder below `output`.
      initial: a model folder to start from; nothing for fresh parameters.
      model: the shape to train.
      length: tokens a block; batch: blocks a step; steps: steps in all.
      chunk: tokens of each block that are read at a time; 0 for all of them at once.
      learning_rate: the peak, held after a linear `warmup` until a linear fall to zero over the
        last `cooldown` share of the steps.
      clip: the largest norm of a step's gradients.
      evaluate_every, save_every: in steps; keep: how many checkpoints stay.
    """

    name: str
    model: ModelConfig
    output: str = "runs"
    initial: str = ""
    length: int = 512
    chunk: int = 0
    batch: int = 8
    steps: int = 2000
    learning_rate: float = 3e-3
    warmup: int = 100
    cooldown: float = 0.7
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0
    evaluate_every: int = 100
    save_every: int = 100
    keep: int = 2

    def __post_init__(self) -> None:
        for field in ("length", "batch", "steps", "evaluate_every", "save_every", "keep"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)}: must be at least 1")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed}: must lie in 0..{2**32 - 1}")
        if self.length > self.model.context:
            raise ValueError(
                f"length={self.length} is longer than the model's context of {self.model.context}"
            )
        if self.chunk and self.length % self.chunk:
            raise ValueError(f"chunk={self.chunk}: length={self.length} is no multiple of it")


def optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """Muon for the layers' matrices and AdamW for the rest, after clipping by norm.

    Both take the same rate: Muon's updates are scaled to the size of Adam's
    (https://arxiv.org/abs/2502.16982, equation 4).
    """
    return optax.chain(
        optax.clip_by_global_norm(recipe.clip),
        muon(
            schedule(recipe),
            weight_decay=recipe.weight_decay,
            adam_b1=0.9,
            adam_b2=0.95,
            muon_weight_dimension_numbers=_matrices,
            consistent_rms=0.2,
        ),
    )


def schedule(recipe: Recipe) -> optax.Schedule:
    """The learning rate: linear warm-up, constant, linear fall to zero."""
    falling = max(1, round(recipe.steps * recipe.cooldown))
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, recipe.learning_rate, recipe.warmup),
            optax.constant_schedule(recipe.learning_rate),
            optax.linear_schedule(recipe.learning_rate, 0.0, falling),
        ],
        [recipe.warmup, recipe.steps - falling],
    )


def _matrices(params: Any) -> Any:
    """Which axes of a parameter Muon makes orthogonal: `[out, in]` of the layers', no other's."""

    def axes(path: tuple[Any, ...], param: jax.Array) -> MuonDimensionNumbers | None:
        outside = {"embedding", "positions", "head"} & {getattr(part, "key", "") for part in path}
        return None if outside or param.ndim != 2 else MuonDimensionNumbers(1, 0)

    return jax.tree_util.tree_map_with_path(axes, params)

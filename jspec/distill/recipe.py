"""A training run, as data: what `configs/NAME.py` returns and the command line overrides."""

from dataclasses import dataclass

import jax
import optax

from jspec.config import ModelConfig


@dataclass(frozen=True)
class Recipe:
    """Ordinary language-model training on the zoo's corpus.

    Attributes:
      name: the run's folder below `output`.
      initial: a model folder to start from; nothing for fresh parameters.
      model: the shape to train.
      length: tokens a block; batch: blocks a step; steps: steps in all.
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
    batch: int = 8
    steps: int = 2000
    learning_rate: float = 2e-3
    warmup: int = 100
    cooldown: float = 0.4
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
        if self.length > self.model.context:
            raise ValueError(
                f"length={self.length} is longer than the model's context of {self.model.context}"
            )


def optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """AdamW with clipping by norm and a warm-up, constant, cool-down schedule."""
    falling = max(1, round(recipe.steps * recipe.cooldown))
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, recipe.learning_rate, recipe.warmup),
            optax.constant_schedule(recipe.learning_rate),
            optax.linear_schedule(recipe.learning_rate, 0.0, falling),
        ],
        [recipe.warmup, recipe.steps - falling],
    )
    return optax.chain(
        optax.clip_by_global_norm(recipe.clip),
        optax.adamw(schedule, b1=0.9, b2=0.95, weight_decay=recipe.weight_decay, mask=_matrices),
    )


def _matrices(params: object) -> object:
    """Norm weights and biases are not decayed."""
    return jax.tree.map(lambda p: p.ndim > 1, params)

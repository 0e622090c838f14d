"""A training run, as data: what `configs/NAME.py` returns and the command line overrides."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from jspec.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What every training run has.

    Attributes:
      name: the run's folder below `output`.
      length: tokens a block; batch: blocks a step; steps: steps in all.
      chunk: tokens of each block that are read at a time; 0 for all of them at once.
      learning_rate: the peak, held after a linear `warmup` until a linear fall to zero over the
        last `cooldown` share of the steps.
      clip: the largest norm of a step's gradients.
      evaluate_every, save_every: in steps; keep: how many checkpoints stay.
    """

    name: str
    output: str = "runs"
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

    # Fields that a run which goes on cannot change.
    FIXED: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for field in ("length", "batch", "steps", "evaluate_every", "save_every", "keep"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)}: must be at least 1")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed}: must lie in 0..{2**32 - 1}")
        if self.chunk and self.length % self.chunk:
            raise ValueError(f"chunk={self.chunk}: length={self.length} is no multiple of it")


@dataclass(frozen=True, kw_only=True)
class Pretraining(Recipe):
    """Ordinary language-model training on the zoo's corpus.

    Attributes:
      model: the shape to train.
      initial: a model folder to start from; nothing for fresh parameters.
    """

    model: ModelConfig
    initial: str = ""

    FIXED: ClassVar[tuple[str, ...]] = ("model",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length > self.model.context:
            raise ValueError(
                f"length={self.length} is longer than the model's context of {self.model.context}"
            )


@dataclass(frozen=True, kw_only=True)
class Losses:
    """How much each loss counts; `beta` leans Jensen-Shannon's mean towards the teacher."""

    forward_kl: float = 1.0
    reverse_kl: float = 0.0
    jensen_shannon: float = 0.0
    total_variation: float = 0.0
    hard_cross_entropy: float = 0.0
    coupled_rejection: float = 0.0
    beta: float = 0.5

    def weights(self) -> dict[str, float]:
        """Those that count."""
        named = dataclasses.asdict(self)
        return {name: weight for name, weight in named.items() if name != "beta" and weight}


@dataclass(frozen=True, kw_only=True)
class Text:
    """Text as it is.

    Attributes:
      weight: its share of the rows, against the other sources'.
      source: `zoo:corpus`.
    """

    weight: float = 1.0
    source: str = "zoo:corpus"


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the target writes itself after the beginnings of texts.

    Attributes:
      weight: its share of the rows, against the other sources'.
      count: how many; prompt: tokens of a text that each goes on from; tokens: the most it has.
      temperature: the one they are sampled at: a number, a set `0.7,0.8` or a range `0.3..1.5`.
      batch: how many are written at a time; tree: what the draft guesses.
    """

    weight: float = 1.0
    count: int = 1024
    prompt: int = 64
    tokens: int = 448
    temperature: str = "1"
    batch: int = 8
    tree: str = "comb:2x1"


@dataclass(frozen=True, kw_only=True)
class Distillation(Recipe):
    """Teaching a draft its target's law.

    Attributes:
      target: the teacher; draft: the student to start from. Both are model folders, hub names, or
        of the zoo.
      loss_temperature: of both laws in the loss: a number, a set or a range, drawn once a text;
        empty for the one that a text was sampled at.
      served: temperatures at which acceptance is measured by decoding; tree: what is guessed then.
      prompts: held-out prompts that are decoded; tokens: new ones of each.
    """

    target: str
    draft: str
    losses: Losses = Losses()
    loss_temperature: str = ""
    text: Text = Text()
    answers: Answers = Answers()
    served: str = "0,1"
    tree: str = "comb:2x1"
    prompts: int = 16
    tokens: int = 64

    FIXED: ClassVar[tuple[str, ...]] = ("target", "draft")


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

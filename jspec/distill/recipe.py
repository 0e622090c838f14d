"""A training run, as data: what `configs/NAME.py` returns and the command line overrides."""

import dataclasses
import math
import types
import typing
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, ClassVar

from jspec.config import ModelConfig
from jspec.distill.optimizer import OPTIMIZERS, SCHEDULES
from jspec.distill.sources import Answers, Rollouts, Text
from jspec.distill.temperatures import read_served, read_temperatures

HEADS = ("eagle", "fspad", "sampling_alone", "alignment_alone", "eagle3")
PARENT_LAYERS = ("first", "spread")
CHOICES = {
    "compute": ("float32", "bfloat16"),
    "optimizer": tuple(OPTIMIZERS),
    "schedule": tuple(SCHEDULES),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What every training run has.

    Attributes:
      name: the run's folder below `output`.
      length: tokens a block; batch: blocks a step; steps: steps in all.
      chunk: tokens of each block that are read at a time; 0 for all of them at once.
      accumulate: batches to a step of the optimizer.
      compute: what the student is computed in; its weights are float32.
      remat: whether a layer's inner values are computed again for the gradient, which saves memory.
      mesh: such as `data=2,tensor=4`; empty for one device. replicated: whether every device has
        the whole student.
      optimizer: `muon` or `adamw`.
      learning_rate: the peak, after a linear `warmup`; schedule: what follows it, over the last
        `cooldown` share of the steps: `linear` or `cosine` to zero, or `constant`.
      clip: the largest norm of a step's gradients; clip_value: of any one number in them; 0 for
        neither.
      evaluate_every, save_every: in steps; keep: how many checkpoints stay, besides the best.
    """

    name: str
    output: str = "runs"
    length: int = 512
    chunk: int = 0
    batch: int = 8
    steps: int = 2000
    accumulate: int = 1
    compute: str = "float32"
    remat: bool = False
    mesh: str = ""
    replicated: bool = False
    optimizer: str = "muon"
    learning_rate: float = 3e-3
    warmup: int = 100
    schedule: str = "linear"
    cooldown: float = 0.7
    weight_decay: float = 0.1
    clip: float = 1.0
    clip_value: float = 0.0
    seed: int = 0
    evaluate_every: int = 100
    save_every: int = 100
    keep: int = 2

    # Fields that a run which goes on cannot change.
    FIXED: ClassVar[tuple[str, ...]] = ("optimizer", "accumulate")

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.chunk < 0:
            raise ValueError(f"chunk={self.chunk}: must be 0 (all at once) or a number of tokens")
        for field in (
            "length", "batch", "steps", "accumulate", "evaluate_every", "save_every", "keep"
        ):  # fmt: skip
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)}: must be at least 1")
        for field in ("warmup", "learning_rate", "weight_decay", "clip", "clip_value"):
            if not getattr(self, field) >= 0 or math.isinf(getattr(self, field)):
                raise ValueError(f"{field}={getattr(self, field)}: must be 0 or more")
        if not 0 <= self.cooldown <= 1:
            raise ValueError(f"cooldown={self.cooldown}: a share of the steps, from 0 to 1")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed}: must lie in 0..{2**32 - 1}")
        for field, known in CHOICES.items():
            if getattr(self, field) not in known:
                raise ValueError(f"{field}={getattr(self, field)!r} is none of: {', '.join(known)}")
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

    FIXED: ClassVar[tuple[str, ...]] = ("model", *Recipe.FIXED)

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

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not 0 <= value < math.inf:
                raise ValueError(f"losses.{name}={value}: must be 0 or more")
        if not 0 < self.beta < 1:
            raise ValueError(f"losses.beta={self.beta}: must lie between 0 and 1")

    def weights(self) -> dict[str, float]:
        """Those that count."""
        named = dataclasses.asdict(self)
        return {name: weight for name, weight in named.items() if name != "beta" and weight}


@dataclass(frozen=True, kw_only=True)
class FeatureHead:
    """A head that reads the target's features, and how it is taught.

    Attributes:
      kind: one of `HEADS`.
      feedforward, heads, kv_heads, channels: of its layer; 0 for what the target has.
      layers: of the target that `eagle3` reads, by their inputs; none for the usual three.
      tokens: how many of the target's `eagle3` may guess, those most frequent in the texts to learn
        from; 0 for all. Of these and the sizes, 0 is for what a `draft` has where there is one.
      features, logits: how much the two losses count: 1 and 0.1 in EAGLE and FSPAD, 0 and 1 in
        EAGLE-3.
      noise: the width of what is added to the target's features.
      passes: how often it reads a text, each time but the first what it guessed itself: 1 in EAGLE
        and FSPAD, 3 in HASS, 7 in EAGLE-3.
      decay: how much each pass counts against the one before; 0.8 in EAGLE-3.
    """

    kind: str = "fspad"
    feedforward: int = 0
    heads: int = 0
    kv_heads: int = 0
    channels: int = 0
    layers: tuple[int, ...] = ()
    tokens: int = 0
    features: float = 1.0
    logits: float = 0.1
    noise: float = 0.2
    passes: int = 1
    decay: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in HEADS:
            raise ValueError(f"head.kind={self.kind!r} is none of: {', '.join(HEADS)}")
        for field in ("feedforward", "heads", "kv_heads", "channels", "tokens"):
            if getattr(self, field) < 0:
                raise ValueError(f"head.{field}={getattr(self, field)}: must be 0 or more")
        for field in ("features", "logits", "noise"):
            if not 0 <= getattr(self, field) < math.inf:
                raise ValueError(f"head.{field}={getattr(self, field)}: must be 0 or more")
        if not self.features + self.logits:
            raise ValueError("head.features and head.logits are both 0: give one a weight")
        if self.passes < 1:
            raise ValueError(f"head.passes={self.passes}: must be at least 1")
        if not 0 < self.decay <= 1:
            raise ValueError(f"head.decay={self.decay}: must lie above 0 and be at most 1")
        if self.kind == "eagle3" and self.features:
            raise ValueError(
                f"head.features={self.features}: eagle3's features are its own, so give it 0"
            )
        if self.kind != "eagle3" and (self.layers or self.tokens):
            raise ValueError(
                f"head.layers={self.layers}, head.tokens={self.tokens}: only eagle3 has them"
            )


@dataclass(frozen=True, kw_only=True)
class Distillation(Recipe):
    """Teaching a draft its target's law.

    Attributes:
      target: the teacher; draft: the student to start from. Both are model folders, hub names, or
        of the zoo.
      model: a shape to start afresh with, in place of `draft`.
      parent: what `model` is cut out of, `target` or a model folder; empty for fresh parameters.
      parent_layers: which of its layers stay: the `first`, or some that are `spread`.
      head: what is taught is a head: a fresh one, or that in the folder `draft`.
      teacher: what the teacher is loaded and computed in: float32, bfloat16 or float16.
      loss_temperature: of both laws in the loss: a number, a set or a range, drawn once a text;
        empty for the one that a text was sampled at.
      served: temperatures at which acceptance is measured by decoding; tree: what is guessed then.
      prompts: held-out prompts that are decoded; tokens: new ones of each.
    """

    target: str
    draft: str = ""
    model: ModelConfig | None = None
    parent: str = ""
    parent_layers: str = "spread"
    head: FeatureHead | None = None
    teacher: str = "float32"
    losses: Losses = Losses()
    loss_temperature: str = ""
    text: Text = Text()
    answers: Answers = Answers()
    rollouts: Rollouts = Rollouts()
    served: str = "0,1"
    tree: str = "comb:2x1"
    prompts: int = 16
    tokens: int = 64

    FIXED: ClassVar[tuple[str, ...]] = (
        "target", "draft", "model", "parent", "parent_layers", "head", *Recipe.FIXED
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model is not None and (self.draft or self.head is not None):
            raise ValueError(f"model={self.model}: there is a draft or a head already")
        if not self.draft and self.model is None and self.head is None:
            raise ValueError("draft='', model=None, head=None: give one of the three")
        if self.parent and self.model is None:
            raise ValueError(
                f"parent={self.parent!r}: it is what a model is cut out of: give model"
            )
        if self.parent_layers not in PARENT_LAYERS:
            known = ", ".join(PARENT_LAYERS)
            raise ValueError(f"parent_layers={self.parent_layers!r} is none of: {known}")
        if self.head is not None and self.rollouts.weight:
            raise ValueError(
                f"rollouts.weight={self.rollouts.weight}: a head writes nothing alone; head.passes "
                "feeds it what it guesses"
            )
        sources = {"text": self.text, "answers": self.answers, "rollouts": self.rollouts}
        for name, source in sources.items():
            if not 0 <= source.weight < math.inf:
                raise ValueError(f"{name}.weight={source.weight}: must be 0 or more")
        if not any(source.weight for source in sources.values()):
            raise ValueError("text, answers and rollouts all have weight=0: give one a weight")
        for name in ("answers", "rollouts"):
            for field in ("count", "prompt", "tokens", "batch"):
                if getattr(sources[name], field) < 1:
                    value = getattr(sources[name], field)
                    raise ValueError(f"{name}.{field}={value}: must be at least 1")
        counts = {"rollouts.every": self.rollouts.every, "prompts": self.prompts}
        for field, value in {**counts, "tokens": self.tokens}.items():
            if value < 1:
                raise ValueError(f"{field}={value}: must be at least 1")
        if not 0 < self.text.held_out < 1:
            raise ValueError(f"text.held_out={self.text.held_out}: a share between 0 and 1")
        for field, text in (
            ("loss_temperature", self.loss_temperature or "1"),
            ("answers.temperature", self.answers.temperature),
            ("rollouts.temperature", self.rollouts.temperature),
        ):
            read_temperatures(field, text)
        read_served(self.served)
        if self.losses.weights() == {}:
            raise ValueError("losses: all weights are 0: give one loss a weight")
        if self.losses.reverse_kl and self._greedy():
            raise ValueError(
                f"losses.reverse_kl={self.losses.reverse_kl}: it is infinite at temperature 0, "
                "where the target's law is one token: take another loss, or a higher temperature"
            )

    def without_noise(self) -> "Distillation":
        """The same, but that a head reads the target's features as they are."""
        if self.head is None:
            return self
        return dataclasses.replace(self, head=dataclasses.replace(self.head, noise=0.0))

    def _greedy(self) -> bool:
        """Whether any text may be learned at temperature 0."""
        used = [self.loss_temperature] if self.loss_temperature else []
        if not used:
            used = [self.answers.temperature] if self.text.weight or self.answers.weight else []
            used += [self.rollouts.temperature] if self.rollouts.weight else []
        return any(0.0 in read_temperatures("temperature", one).values for one in used)


def check_name(name: str) -> None:
    """Raises `ValueError` for what names no folder below `output`."""
    path = PurePath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"name={name!r}: it names a folder below output, such as my_run")


def distillation_of(record: dict[str, Any]) -> Distillation:
    """The recipe that a run noted as JSON; raises `ValueError` for that of something else."""
    try:
        return _built(Distillation, record)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"not the recipe of a distillation ({error})") from error


def _built(kind: Any, value: Any) -> Any:
    """A value of JSON as a field of this type."""
    if isinstance(kind, types.UnionType):
        kind = next(one for one in typing.get_args(kind) if one is not types.NoneType)
    if value is None or not dataclasses.is_dataclass(kind):
        return tuple(value) if isinstance(value, list) else value
    kinds = typing.get_type_hints(kind)
    return kind(**{name: _built(kinds.get(name), inner) for name, inner in value.items()})

"""A training run, as data: what `configs/NAME.py` returns and the command line overrides."""

import dataclasses
import math
import re
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import ClassVar

import numpy as np

from jspec.config import ModelConfig

HEAD_KINDS = ("eagle", "fspad", "sampling_alone", "alignment_alone", "eagle3")
PARENT_LAYERS = ("first", "spread")
CHOICES = {
    "compute_dtype": ("float32", "bfloat16"),
    "optimizer": ("muon", "adamw"),
    "schedule": ("linear", "cosine", "constant"),
}
NUMBER = r"\d+(?:\.\d*)?|\.\d+"


def _check_counts(recipe: object, *fields: str, prefix: str = "") -> None:
    for field in fields:
        if getattr(recipe, field) < 1:
            raise ValueError(f"{prefix}{field}={getattr(recipe, field)}: must be at least 1")


def _check_not_negative(recipe: object, *fields: str, prefix: str = "") -> None:
    for field in fields:
        if not 0 <= getattr(recipe, field) < math.inf:
            raise ValueError(f"{prefix}{field}={getattr(recipe, field)}: must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What every training run has.

    Attributes:
      name: the run's folder below `output`.
      sequence_length: tokens of a row; batch_size: rows of a step; steps: of the whole run.
      chunk_size: tokens of each row that are read at a time; 0 for all of them.
      gradient_accumulation_steps: batches to one step of the optimizer.
      compute_dtype: of the student's computation; its weights are float32.
      remat: whether a layer's activations are recomputed for the gradient, which saves memory.
      mesh: such as `data=2,tensor=4`; empty for one device.
      replicated: whether every device holds the whole student.
      optimizer: `muon` or `adamw`.
      learning_rate: the peak, after `warmup_steps` of linear warm-up; schedule: how it falls over
        the last `cooldown` share of the steps: `linear` or `cosine` to zero, or `constant`.
      max_grad_norm: of a step's gradients; max_grad_value: of any one number in them; 0 for
        no limit.
      evaluate_every, save_every: in steps; keep: how many checkpoints stay, besides the best.
    """

    name: str
    output: str = "runs"
    sequence_length: int = 512
    chunk_size: int = 0
    batch_size: int = 8
    steps: int = 2000
    gradient_accumulation_steps: int = 1
    compute_dtype: str = "float32"
    remat: bool = False
    mesh: str = ""
    replicated: bool = False
    optimizer: str = "muon"
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    schedule: str = "linear"
    cooldown: float = 0.7
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    max_grad_value: float = 0.0
    seed: int = 0
    evaluate_every: int = 100
    save_every: int = 100
    keep: int = 2

    # Fields that cannot change when a run resumes.
    FIXED: ClassVar[tuple[str, ...]] = ("optimizer", "gradient_accumulation_steps")

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.chunk_size < 0:
            raise ValueError(
                f"chunk_size={self.chunk_size}: must be 0 (all at once) or a number of tokens"
            )
        _check_counts(
            self, "sequence_length", "batch_size", "steps", "gradient_accumulation_steps",
            "evaluate_every", "save_every", "keep",
        )  # fmt: skip
        _check_not_negative(
            self, "warmup_steps", "learning_rate", "weight_decay", "max_grad_norm",
            "max_grad_value",
        )  # fmt: skip
        if not 0 <= self.cooldown <= 1:
            raise ValueError(f"cooldown={self.cooldown}: a share of the steps, from 0 to 1")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed}: must be in 0..{2**32 - 1}")
        for field, known in CHOICES.items():
            if getattr(self, field) not in known:
                raise ValueError(f"{field}={getattr(self, field)!r} is none of: {', '.join(known)}")
        if self.chunk_size and self.sequence_length % self.chunk_size:
            raise ValueError(
                f"chunk_size={self.chunk_size}: sequence_length={self.sequence_length} is not a "
                "multiple of it"
            )

    @property
    def folder(self) -> Path:
        """The run's own folder."""
        return Path(self.output).absolute() / self.name


@dataclass(frozen=True, kw_only=True)
class Pretraining(Recipe):
    """Language-model training on the zoo's corpus.

    Attributes:
      model: the shape to train.
      initial: a model folder to start from; empty for random parameters.

    >>> from jspec import ModelConfig
    >>> shape = ModelConfig(4096, 64, 128, 1, 2, 1, 32, 512)
    >>> Pretraining(name="tiny", model=shape, steps=100).batch_size
    8
    """

    model: ModelConfig
    initial: str = ""

    FIXED: ClassVar[tuple[str, ...]] = ("model", *Recipe.FIXED)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sequence_length > self.model.max_position_embeddings:
            raise ValueError(
                f"sequence_length={self.sequence_length} is longer than the model's context of "
                f"{self.model.max_position_embeddings}"
            )


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The weight of each loss; `beta` moves the Jensen-Shannon mixture towards the teacher."""

    forward_kl: float = 1.0
    reverse_kl: float = 0.0
    jensen_shannon: float = 0.0
    total_variation: float = 0.0
    hard_cross_entropy: float = 0.0
    coupled_rejection: float = 0.0
    beta: float = 0.5

    def __post_init__(self) -> None:
        names = [field.name for field in dataclasses.fields(self)]
        _check_not_negative(self, *names, prefix="losses.")
        if not 0 < self.beta < 1:
            raise ValueError(f"losses.beta={self.beta}: must be between 0 and 1")

    def weights(self) -> dict[str, float]:
        """Those that are not 0."""
        named = dataclasses.asdict(self)
        return {name: weight for name, weight in named.items() if name != "beta" and weight}


@dataclass(frozen=True, kw_only=True)
class FeatureHead:
    """A head that reads the target's hidden states, and how it is trained.

    Attributes:
      kind: one of `HEAD_KINDS`.
      intermediate_size, num_attention_heads, num_key_value_heads, head_dim: of its layer; 0 for
        what the target has.
      layers: of the target, whose inputs `eagle3` reads; empty for the usual three.
      draft_vocab_size: how many of the target's tokens `eagle3` may draft, the most frequent in the
        training texts; 0 for all. For this and the sizes, 0 keeps what a given `draft` has.
      feature_weight, logits_weight: of the two losses: 1 and 0.1 in EAGLE and FSPAD, 0 and 1 in
        EAGLE-3.
      feature_noise: the width of the noise on the target's features.
      ttt_steps: steps of the training-time test: 1 in EAGLE and FSPAD, 3 in HASS, 7 in EAGLE-3.
      ttt_decay: the weight of each step relative to the one before; 0.8 in EAGLE-3.
    """

    kind: str = "fspad"
    intermediate_size: int = 0
    num_attention_heads: int = 0
    num_key_value_heads: int = 0
    head_dim: int = 0
    layers: tuple[int, ...] = ()
    draft_vocab_size: int = 0
    feature_weight: float = 1.0
    logits_weight: float = 0.1
    feature_noise: float = 0.2
    ttt_steps: int = 1
    ttt_decay: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in HEAD_KINDS:
            raise ValueError(f"head.kind={self.kind!r} is none of: {', '.join(HEAD_KINDS)}")
        _check_not_negative(
            self, "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
            "draft_vocab_size", "feature_weight", "logits_weight", "feature_noise",
            prefix="head.",
        )  # fmt: skip
        if not self.feature_weight + self.logits_weight:
            raise ValueError("head.feature_weight and head.logits_weight are both 0: set one")
        _check_counts(self, "ttt_steps", prefix="head.")
        if not 0 < self.ttt_decay <= 1:
            raise ValueError(f"head.ttt_decay={self.ttt_decay}: must be above 0 and at most 1")
        if self.kind == "eagle3" and self.feature_weight:
            raise ValueError(
                f"head.feature_weight={self.feature_weight}: eagle3 predicts features of its own, "
                "so set it to 0"
            )
        if self.kind != "eagle3" and (self.layers or self.draft_vocab_size):
            raise ValueError(
                f"head.layers={self.layers}, head.draft_vocab_size={self.draft_vocab_size}: only "
                "eagle3 has them"
            )


@dataclass(frozen=True, kw_only=True)
class Text:
    """Text as it is; the other sources take their prompts from it, too.

    Attributes:
      weight: its share of the rows, relative to the other sources.
      source: `zoo:corpus`, a file (JSON, JSON lines, Parquet, text, Arrow), a folder, a hub name.
      split: of a folder or a hub name; column: which to read; empty to find it by its name.
      held_out: the share of the texts that is kept for evaluation; the zoo's corpus has its own.
    """

    weight: float = 1.0
    source: str = "zoo:corpus"
    split: str = "train"
    column: str = ""
    held_out: float = 0.05


@dataclass(frozen=True, kw_only=True)
class TeacherData:
    """Text that the target generates after prompts, once for the run.

    Attributes:
      weight: its share of the rows, relative to the other sources.
      count: of the texts; max_new_tokens: of each.
      prompt_length: tokens of each prompt. Of a conversation the prompt is all that comes before
        the assistant's first turn, which may be longer.
      temperature: that it is sampled at: a number, a set `0.7,0.8` or a range `0.3..1.5`.
      batch_size: texts that are generated together; tree: of the draft tokens.
    """

    weight: float = 1.0
    count: int = 1024
    prompt_length: int = 64
    max_new_tokens: int = 448
    temperature: str = "1"
    batch_size: int = 8
    tree: str = "comb:2x1"


@dataclass(frozen=True, kw_only=True)
class OnPolicyData:
    """Text that the student generates itself and is trained on (on-policy distillation).

    Attributes:
      weight: its share of the rows, relative to the other sources.
      every: steps after which it is generated again.
      count, prompt_length, max_new_tokens, temperature, batch_size: as in `TeacherData`.
    """

    weight: float = 0.0
    every: int = 200
    count: int = 256
    prompt_length: int = 64
    max_new_tokens: int = 448
    temperature: str = "1"
    batch_size: int = 8


@dataclass(frozen=True, kw_only=True)
class Distillation(Recipe):
    """Training a draft on its target's distribution.

    Attributes:
      target: the teacher; draft: the student to start from. Both are model folders, hub names, or
        of the zoo.
      model: a shape to start from scratch with, in place of `draft`.
      parent: what `model` is pruned from, `target` or a model folder; empty for random parameters.
      parent_layers: which of its layers stay: the `first`, or some that are `spread`.
      head: the student is a head: a new one, or that in the folder `draft`.
      teacher_dtype: of the teacher's weights and computation: float32, bfloat16 or float16.
      loss_temperature: of both distributions in the loss: a number, a set or a range, drawn once a
        text; empty for the temperature that a text was sampled at.
      temperatures: at which the acceptance length is measured by decoding; tree: of the draft
        tokens then.
      prompts: held-out prompts that are decoded; max_new_tokens: of each.

    >>> recipe = Distillation(name="mine", target="zoo:target", draft="zoo:wide", steps=60)
    >>> recipe.teacher_data.count
    1024
    """

    target: str
    draft: str = ""
    model: ModelConfig | None = None
    parent: str = ""
    parent_layers: str = "spread"
    head: FeatureHead | None = None
    teacher_dtype: str = "float32"
    losses: Losses = Losses()
    loss_temperature: str = ""
    text: Text = Text()
    teacher_data: TeacherData = TeacherData()
    on_policy: OnPolicyData = OnPolicyData()
    temperatures: str = "0,1"
    tree: str = "comb:2x1"
    prompts: int = 16
    max_new_tokens: int = 64

    FIXED: ClassVar[tuple[str, ...]] = (
        "target", "draft", "model", "parent", "parent_layers", "head", *Recipe.FIXED
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_student()
        for name in ("text", "teacher_data", "on_policy"):
            _check_not_negative(getattr(self, name), "weight", prefix=f"{name}.")
        if not self.text.weight + self.teacher_data.weight + self.on_policy.weight:
            raise ValueError("text, teacher_data and on_policy all have weight=0: set one of them")
        for name in ("teacher_data", "on_policy"):
            fields = ("count", "prompt_length", "max_new_tokens", "batch_size")
            _check_counts(getattr(self, name), *fields, prefix=f"{name}.")
        _check_counts(self.on_policy, "every", prefix="on_policy.")
        _check_counts(self, "prompts", "max_new_tokens")
        if not 0 < self.text.held_out < 1:
            raise ValueError(f"text.held_out={self.text.held_out}: a share between 0 and 1")
        for field, text in (
            ("loss_temperature", self.loss_temperature or "1"),
            ("teacher_data.temperature", self.teacher_data.temperature),
            ("on_policy.temperature", self.on_policy.temperature),
        ):
            read_temperatures(field, text)
        split_temperatures(self.temperatures)
        if self.losses.weights() == {}:
            raise ValueError("losses: all weights are 0: give one loss a weight")
        if self.losses.reverse_kl and self._learns_greedy():
            raise ValueError(
                f"losses.reverse_kl={self.losses.reverse_kl}: it is infinite at temperature 0, "
                "where the target's distribution is one token: take another loss, or a higher "
                "temperature"
            )

    def without_noise(self) -> "Distillation":
        """The same recipe, but a head reads the target's features without noise."""
        if self.head is None:
            return self
        return dataclasses.replace(self, head=dataclasses.replace(self.head, feature_noise=0.0))

    def _check_student(self) -> None:
        if self.model is not None and (self.draft or self.head is not None):
            raise ValueError(f"model={self.model}: there is a draft or a head already")
        if not self.draft and self.model is None and self.head is None:
            raise ValueError("draft='', model=None, head=None: give one of the three")
        if self.parent and self.model is None:
            raise ValueError(f"parent={self.parent!r}: a model is pruned from it: give model")
        if self.parent_layers not in PARENT_LAYERS:
            known = ", ".join(PARENT_LAYERS)
            raise ValueError(f"parent_layers={self.parent_layers!r} is none of: {known}")
        if self.head is not None and self.on_policy.weight:
            raise ValueError(
                f"on_policy.weight={self.on_policy.weight}: a head generates no text alone; with "
                "head.ttt_steps it is trained on its own features"
            )

    def _learns_greedy(self) -> bool:
        """Whether any text may be learned at temperature 0."""
        used = [self.loss_temperature] if self.loss_temperature else []
        if not used:
            fixed = self.text.weight or self.teacher_data.weight
            used = [self.teacher_data.temperature] if fixed else []
            used += [self.on_policy.temperature] if self.on_policy.weight else []
        return any(0.0 in read_temperatures("temperature", one).values for one in used)


@dataclass(frozen=True)
class Temperatures:
    """What a temperature may be: any of `values` or, where there are none, `low` to `high`."""

    values: tuple[float, ...] = ()
    low: float = 0.0
    high: float = 0.0

    def draw(self, seed: int, count: int) -> np.ndarray:
        """One for each of `count` sequences, `[count]` float32; the same for the same seed."""
        rng = np.random.default_rng((seed, 1))
        if self.values:
            drawn = np.array(self.values)[rng.integers(len(self.values), size=count)]
        else:
            drawn = rng.uniform(self.low, self.high, size=count)
        return drawn.astype(np.float32)


def read_temperatures(name: str, text: str) -> Temperatures:
    """`1`, `0.7,0.8,0.9` or `0.3..1.5`; raises `ValueError`, naming the field, for others."""
    ends = re.fullmatch(rf"\s*({NUMBER})\s*\.\.\s*({NUMBER})\s*", text)
    if ends:
        low, high = map(float, ends.groups())
        if low < high < math.inf:
            return Temperatures(low=low, high=high)
    elif all(re.fullmatch(rf"\s*({NUMBER})\s*", part) for part in text.split(",")):
        return Temperatures(tuple(float(part) for part in text.split(",")))
    raise ValueError(
        f"{name}={text!r}: write a number from 0 on, a set such as 0.7,0.8,0.9, or a range such as "
        "0.3..1.5"
    )


def split_temperatures(text: str) -> dict[str, Temperatures]:
    """The temperatures to evaluate at, by name: each number of a set, or a whole range."""
    found = read_temperatures("temperatures", text)
    if not found.values:
        return {f"{found.low:g}..{found.high:g}": found}
    return {f"{value:g}": Temperatures((value,)) for value in found.values}


def check_name(name: str) -> None:
    """Raises `ValueError` for what is not the name of a folder below `output`."""
    path = PurePath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"name={name!r}: it names a folder below output, such as my_run")

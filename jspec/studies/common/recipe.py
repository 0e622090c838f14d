"""An experiment as data: what `configs/NAME.py` returns and the command line overrides."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from jspec.core.checks import check_counts
from jspec.formats.folder import claim
from jspec.training.recipe import Distillation, TeacherData, Text, check_name

# Verification rules by name; the lossy one is the published multi-candidate method's.
COUPLED, LOSSY = "coupled", "lossy"
# A few steps on the zoo's target, of which each study changes what it asks about.
SHORT_TRAINING = Distillation(
    name="short", target="zoo:target", draft="zoo:wide",
    teacher_data=TeacherData(count=512, max_new_tokens=192, batch_size=16),
    sequence_length=256, chunk_size=128, steps=240, warmup_steps=20, cooldown=0.8, save_every=120,
    keep=1, temperatures="1", tree="chain:4", prompts=4, max_new_tokens=32,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Study:
    """What every experiment has.

    Attributes:
      name: the study's folder below `output`.
      temperatures: at which target and draft are sampled.
    """

    name: str
    output: str = "runs"
    temperatures: tuple[float, ...] = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_name(self.name)
        self._check_distinct("temperatures")
        for temperature in self.temperatures:
            if not 0 <= temperature < math.inf:
                raise ValueError(f"temperatures={temperature}: must be 0 or a positive number")

    def _check_counts(self, *fields: str) -> None:
        """Raises `ValueError` for a field, or an entry of one, that is less than 1."""
        for field in fields:
            value = getattr(self, field)
            if not isinstance(value, tuple):
                check_counts(**{field: value})
            elif min(value) < 1:
                raise ValueError(f"{field}={value}: each is at least 1")

    def _check_distinct(self, *fields: str) -> None:
        """Raises `ValueError` for a field without values, or with one twice."""
        for field in fields:
            values = getattr(self, field)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{field}={values}: give at least one value, and each once")

    @property
    def mesh(self) -> str:
        """What it runs on: that of its training, where it trains drafts."""
        training: Distillation | None = getattr(self, "training", None)
        return "" if training is None else training.mesh

    @property
    def folder(self) -> Path:
        """Where all of it is written."""
        return Path(self.output).absolute() / self.name

    def record(self) -> dict[str, Any]:
        """What its results depend on, for JSON."""
        fields = json.loads(json.dumps(asdict(self)))
        return {name: value for name, value in fields.items() if name not in ("name", "output")}

    def claim_folder(self) -> None:
        """Raises `ValueError` where the folder holds a study whose recipe is another."""
        claim(self.folder / "study.json", self.record(), fixed=self.record(), what="study")


@dataclass(frozen=True, kw_only=True)
class DecodingStudy(Study):
    """An experiment that decodes held-out prompts.

    Attributes:
      prompts, prompt_length, max_new_tokens: how many texts are decoded, and of what lengths.
      repetitions: of the timing.
    """

    prompts: int
    prompt_length: int = 64
    max_new_tokens: int = 64
    repetitions: int = 3

    def __post_init__(self) -> None:
        self._check_counts("prompts", "prompt_length", "max_new_tokens", "repetitions")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class TrainingStudy(DecodingStudy):
    """An experiment that trains drafts of several kinds.

    Attributes:
      training: how each draft is trained; its name and seed are the study's.
      seeds: drafts of each kind.
      elsewhere: texts of another domain, named as `training.text.source` is.
      timed_prompts: on how many texts it is timed.
    """

    training: Distillation
    seeds: int = 3
    elsewhere: Text = Text(source="zoo:prose")
    prompts: int = 24
    timed_prompts: int = 2

    def __post_init__(self) -> None:
        self._check_counts("timed_prompts")
        if self.seeds < 2:
            raise ValueError(f"seeds={self.seeds}: an interval needs at least 2")
        super().__post_init__()

    def training_run(self, draft: str, seed: int) -> Distillation:
        """How a draft is trained whose folder is `draft`/`seed`."""
        return replace(
            self.training,
            evaluate_every=self.training.steps,
            name=f"{draft}/{seed}",
            output=str(self.folder),
            seed=self.training.seed + seed,
        )


def trained_rows(training: Distillation) -> str:
    """What a draft is trained on, for reports."""
    tokens = training.steps * training.batch_size * training.sequence_length
    return (
        f"{training.steps:,} steps of {training.batch_size} rows of {training.sequence_length} "
        f"tokens ({tokens:,} in all)"
    )


def measured_on(recipe: TrainingStudy) -> str:
    """What drafts are measured on, for reports."""
    return (
        f"Measured on {recipe.prompts} prompts of each domain, {recipe.max_new_tokens} new tokens, "
        "the same for all; ± is Student's 95% interval over seeds, and does not cover other texts."
    )


class Experiment(NamedTuple):
    """A study that can be run.

    Attributes:
      recipe: its class of recipes, whose default is on the zoo.
      run: from a recipe and its material to what was measured, or None if the machine was taken
        away meanwhile; takes `mesh` and `note`. What is done is kept below `output/name`, and not
        done again.
      write: writes report, numbers and figures, and returns the findings in sentences.
      passed: whether all is as it should be, where the study is a test.
    """

    recipe: type[Study]
    run: Callable[..., Any]
    write: Callable[[Any, Any], list[str]]
    passed: Callable[[Any], bool] = lambda _: True

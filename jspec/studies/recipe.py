"""An experiment, as data: what `configs/NAME.py` returns and the command line overrides."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jspec.distill.recipe import Answers, Distillation, FeatureHead, Text, check_name
from jspec.distill.temperatures import read_temperatures

ZOO = Distillation(
    name="temperature",
    target="zoo:target",
    draft="zoo:wide",
    text=Text(weight=0.0),
    answers=Answers(count=384, prompt=32, tokens=96, batch=32, tree="chain:1"),
    length=128,
    batch=8,
    steps=160,
    learning_rate=3e-4,
    warmup=10,
    cooldown=0.8,
    save_every=160,
    keep=1,
    served="1",
    prompts=4,
    tokens=32,
)

ZOO_HEADS = Distillation(
    name="feature_draft",
    target="zoo:target",
    head=FeatureHead(feedforward=192, heads=4, kv_heads=4),
    text=Text(weight=0.4),
    answers=Answers(weight=0.6, count=512, tokens=192, batch=16),
    length=256,
    chunk=128,
    batch=4,
    steps=240,
    learning_rate=2e-3,
    warmup=20,
    cooldown=0.8,
    save_every=120,
    keep=1,
    served="1",
    tree="chain:4",
    prompts=4,
    tokens=32,
)

# Heads of FSPAD's ablation, and EAGLE's with as many parameters as FSPAD's has.
WIDE = "eagle_wide"
KINDS = ("eagle", "sampling_alone", "alignment_alone", "fspad", WIDE)


@dataclass(frozen=True, kw_only=True)
class Study:
    """What every experiment has.

    Attributes:
      name: the study's folder below `output`.
      served: temperatures that both models are sampled at.
    """

    name: str
    output: str = "runs"
    served: tuple[float, ...]

    def __post_init__(self) -> None:
        check_name(self.name)
        self._check_each("served")
        for temperature in self.served:
            if not 0 <= temperature < math.inf:
                raise ValueError(f"served={temperature}: must be 0 or a positive number")

    def _check_counts(self, *fields: str) -> None:
        """Raises `ValueError` for a field that is less than 1."""
        for field in fields:
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)}: must be at least 1")

    def _check_each(self, *fields: str) -> None:
        """Raises `ValueError` for a field of no values, or of one twice."""
        for field in fields:
            values = getattr(self, field)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{field}={values}: give at least one value, and each once")

    @property
    def mesh(self) -> str:
        """What it runs on."""
        return ""

    @property
    def folder(self) -> Path:
        """Where all of it lies."""
        return Path(self.output).absolute() / self.name

    def record(self) -> dict[str, Any]:
        """What its results hang on, for JSON."""
        fields = json.loads(json.dumps(asdict(self)))
        return {name: value for name, value in fields.items() if name not in ("name", "output")}


@dataclass(frozen=True, kw_only=True)
class TeachingStudy(Study):
    """An experiment that teaches drafts.

    Attributes:
      teaching: how each draft is taught; its name and seed are the study's.
      seeds: drafts of each kind.
      elsewhere: texts of another domain, named as `teaching.text.source` is.
      prompts, prompt, tokens: how many texts are measured on, of what lengths.
      timed: prompts, and repetitions: of the timing.
    """

    teaching: Distillation
    seeds: int = 3
    elsewhere: Text = Text(source="zoo:prose")
    prompts: int = 24
    prompt: int = 64
    tokens: int = 64
    timed: int = 2
    repetitions: int = 3

    def __post_init__(self) -> None:
        self._check_counts("prompts", "prompt", "tokens", "timed", "repetitions")
        if self.seeds < 2:
            raise ValueError(f"seeds={self.seeds}: an interval needs at least 2")
        super().__post_init__()

    @property
    def mesh(self) -> str:
        return self.teaching.mesh

    def taught_as(self, draft: str, seed: int) -> Distillation:
        """How a draft is taught whose folder is `draft`/`seed`."""
        return replace(
            self.teaching,
            evaluate_every=self.teaching.steps,
            name=f"{draft}/{seed}",
            output=str(self.folder),
            seed=self.teaching.seed + seed,
        )


@dataclass(frozen=True, kw_only=True)
class TemperatureStudy(TeachingStudy):
    """Drafts that are taught at some temperatures and served at others, as TempSpec asks
    (arXiv 2410.10141). What the paper leaves open is ours: the loss, the guesses, the data. A seed
    has prompts, answers and an order of its own; the temperatures of `teaching` are the study's.

    Attributes:
      taught: temperatures of the answers and of the loss, tied: each a number, a set or a range.
      drawn: temperatures that the draft alone is sampled at, which asks for no teaching.
      reference: the one of `taught` that the others are held against.
      width: candidates of a node, and of a round; tree: of what is decoded and timed.
    """

    name: str = "temperature"
    teaching: Distillation = ZOO
    taught: tuple[str, ...] = ("0", "0.3", "0.7", "1", "1.5", "0.3..1.5", "0.3,0.7,1,1.5")
    served: tuple[float, ...] = (0.0, 0.3, 0.7, 1.0, 1.5, 2.0)
    drawn: tuple[float, ...] = (0.3, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0)
    reference: str = "1"
    width: int = 4
    tree: str = "comb:2x1"

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, given in (
            ("answers.temperature", self.teaching.answers.temperature != "1"),
            ("loss_temperature", self.teaching.loss_temperature),
        ):
            if given:
                raise ValueError(f"teaching.{field}: the study sets it: say it in taught")
        if self.teaching.head is not None:
            raise ValueError(
                f"teaching.head.kind={self.teaching.head.kind!r}: this study teaches small models; "
                "jspec study feature-draft teaches heads"
            )
        if self.width < 2:
            raise ValueError(f"width={self.width}: a node has at least 2 candidates")
        for field in ("taught", "drawn"):
            self._check_each(field)
        if self.reference not in self.taught:
            raise ValueError(f"reference={self.reference!r} is not in taught={self.taught}")
        if len({read_temperatures("taught", text) for text in self.taught}) < len(self.taught):
            raise ValueError(f"taught={self.taught} names one temperature twice")
        for temperature in self.drawn:
            if not 0 < temperature < math.inf:
                raise ValueError(f"drawn={temperature}: must be a positive number")

    def runs(self) -> Iterator[tuple[str, int, Distillation]]:
        """Each draft that is taught: at which temperature, its seed, and its recipe."""
        for seed in range(self.seeds):
            for taught in self.taught:
                recipe = self.taught_as(taught, seed)
                answers = replace(recipe.answers, temperature=taught)
                yield taught, seed, replace(recipe, answers=answers, loss_temperature="")


@dataclass(frozen=True, kw_only=True)
class FeatureDraftStudy(TeachingStudy):
    """FSPAD's ablation (arXiv 2408.15562): EAGLE's head, each of FSPAD's two changes alone, both,
    and EAGLE's head with as many parameters as FSPAD's. All read the same answers of the target; a
    seed has an order and first parameters of its own. The kind of `teaching.head` is the study's.

    Attributes:
      kinds: of `KINDS`, `eagle` and `fspad` among them.
      tree, growth: a static and a grown tree of as many nodes.
      drafts: small models that stand beside the heads; draft_trees: what each of them guesses.
    """

    name: str = "feature_draft"
    teaching: Distillation = ZOO_HEADS
    served: tuple[float, ...] = (0.0, 1.0)
    prompts: int = 48
    kinds: tuple[str, ...] = KINDS
    tree: str = "comb:4x3x2x2"
    growth: str = "grow:4x4x12"
    drafts: tuple[str, ...] = ("zoo:wide", "zoo:distilled")
    draft_trees: tuple[str, ...] = ("chain:3", "chain:7", "chain:11", "comb:4x3x2x2", "grow:4x4x12")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_each("kinds")
        for kind in self.kinds:
            if kind not in KINDS:
                raise ValueError(f"kinds={kind!r} is none of: {', '.join(KINDS)}")
        if missing := {"eagle", "fspad"} - set(self.kinds):
            raise ValueError(f"kinds={self.kinds}: {min(missing)} is what is asked about: add it")
        for field in ("drafts", "draft_trees"):
            if getattr(self, field):
                self._check_each(field)
        head = self.teaching.head
        if head is None or head.kind != "fspad":
            raise ValueError("teaching.head.kind: the study sets it: say it in kinds")
        if self.teaching.draft:
            raise ValueError(
                f"teaching.draft={self.teaching.draft!r}: heads of several kinds begin afresh"
            )

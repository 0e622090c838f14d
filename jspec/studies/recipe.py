"""An experiment, as data: what `configs/NAME.py` returns and the command line overrides."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jspec.distill.recipe import Answers, Distillation, Text, check_name
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


@dataclass(frozen=True, kw_only=True)
class TemperatureStudy:
    """Drafts that are taught at some temperatures and served at others, as TempSpec asks
    (arXiv 2410.10141). What the paper leaves open is ours: the loss, the guesses, the data.

    Attributes:
      name: the study's folder below `output`.
      teaching: how each draft is taught; its name, seed and temperatures are the study's.
      taught: temperatures of the answers and of the loss, tied: each a number, a set or a range.
      served: temperatures that both models are sampled at.
      drawn: temperatures that the draft alone is sampled at, which asks for no teaching.
      reference: the one of `taught` that the others are held against.
      seeds: drafts of each kind; a seed has prompts, answers and an order of its own.
      elsewhere: texts of another domain, named as `teaching.text.source` is.
      prompts, prompt, tokens: how many texts are measured on, of what lengths.
      width: candidates of a node, and of a round; tree: of what is decoded and timed.
      timed: prompts, and repetitions: of the timing.
    """

    name: str = "temperature"
    output: str = "runs"
    teaching: Distillation = ZOO
    taught: tuple[str, ...] = ("0", "0.3", "0.7", "1", "1.5", "0.3..1.5", "0.3,0.7,1,1.5")
    served: tuple[float, ...] = (0.0, 0.3, 0.7, 1.0, 1.5, 2.0)
    drawn: tuple[float, ...] = (0.3, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0)
    reference: str = "1"
    seeds: int = 3
    elsewhere: Text = Text(source="zoo:prose")
    prompts: int = 24
    prompt: int = 64
    tokens: int = 64
    width: int = 4
    tree: str = "comb:2x1"
    timed: int = 2
    repetitions: int = 3

    def __post_init__(self) -> None:
        check_name(self.name)
        for field, given in (
            ("answers.temperature", self.teaching.answers.temperature != "1"),
            ("loss_temperature", self.teaching.loss_temperature),
        ):
            if given:
                raise ValueError(f"teaching.{field}: the study sets it: say it in taught")
        for field in ("prompts", "prompt", "tokens", "timed", "repetitions"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)}: must be at least 1")
        if self.seeds < 2:
            raise ValueError(f"seeds={self.seeds}: an interval needs at least 2")
        if self.width < 2:
            raise ValueError(f"width={self.width}: a node has at least 2 candidates")
        for field in ("taught", "served", "drawn"):
            values = getattr(self, field)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{field}={values}: give at least one value, and each once")
        if self.reference not in self.taught:
            raise ValueError(f"reference={self.reference!r} is not in taught={self.taught}")
        if len({read_temperatures("taught", text) for text in self.taught}) < len(self.taught):
            raise ValueError(f"taught={self.taught} names one temperature twice")
        for temperature in self.served:
            if not 0 <= temperature < math.inf:
                raise ValueError(f"served={temperature}: must be 0 or a positive number")
        for temperature in self.drawn:
            if not 0 < temperature < math.inf:
                raise ValueError(f"drawn={temperature}: must be a positive number")

    @property
    def folder(self) -> Path:
        """Where all of it lies."""
        return Path(self.output).absolute() / self.name

    def record(self) -> dict[str, Any]:
        """What its results hang on, for JSON."""
        fields = json.loads(json.dumps(asdict(self)))
        return {name: value for name, value in fields.items() if name not in ("name", "output")}

    def runs(self) -> Iterator[tuple[str, int, Distillation]]:
        """Each draft that is taught: at which temperature, its seed, and its recipe."""
        for seed in range(self.seeds):
            for taught in self.taught:
                recipe = replace(
                    self.teaching,
                    evaluate_every=self.teaching.steps,
                    name=f"{taught}/{seed}",
                    output=str(self.folder),
                    seed=self.teaching.seed + seed,
                    answers=replace(self.teaching.answers, temperature=taught),
                    loss_temperature="",
                )
                yield taught, seed, recipe

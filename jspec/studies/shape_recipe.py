"""The draft-shape study, as data."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from jspec.config import ModelConfig
from jspec.distill.recipe import Answers, Distillation, Text
from jspec.plan.imagined import imagine
from jspec.studies.recipe import Study

# One layer of 1.42 million parameters, and as many in more and narrower ones.
ONE = "layers=1,width=224,heads=4,channels=56,feedforward=448"
DEEPER = (
    "layers=2,width=192,heads=4,channels=48,feedforward=288",
    "layers=4,width=160,heads=4,channels=40,feedforward=184",
    "layers=8,width=128,heads=4,channels=32,feedforward=120",
)
TEACHING = Distillation(
    name="draft_shape",
    target="zoo:target",
    model=ModelConfig(
        vocabulary=4096, width=224, feedforward=448, layers=1, heads=4, kv_heads=4, channels=56,
        context=512, tied=True,
    ),
    text=Text(weight=0.5),
    answers=Answers(weight=0.5, count=512, tokens=192, batch=16),
    length=256,
    chunk=128,
    batch=8,
    steps=240,
    warmup=20,
    cooldown=0.8,
    evaluate_every=240,
    save_every=120,
    keep=1,
    served="1",
    tree="chain:4",
    prompts=4,
    tokens=32,
)  # fmt: skip

# What a shape must say to have a name.
NAMED = "layers", "width", "heads", "channels"


class Pupil(NamedTuple):
    """A shape that is taught: what tables call it, and what it is."""

    name: str
    config: ModelConfig


@dataclass(frozen=True, kw_only=True)
class DraftShapeStudy(Study):
    """Drafts of many shapes taught alike, as Decoding Speculative Decoding asks (arXiv 2402.01528).

    Attributes:
      teaching: how each draft is taught; its target, model and name are the study's.
      targets: model folders; those after the first are guessed for by `deeper` alone.
      one, deeper: shapes of equal parameters in words, of one layer and of more.
      wider: shapes of one layer; larger: of one proportion; designed: of one layer, whose attention
        is narrower or wider than the model, with as many parameters as `one`.
      depths, batches: of chains, and of texts that are written together.
      prompts, prompt, tokens, repetitions: what is written, and how often.
      probes: depths of the chains from which costs are learned, none of `depths`.
    """

    name: str = "draft_shape"
    served: tuple[float, ...] = (0.0, 1.0)
    teaching: Distillation = TEACHING
    targets: tuple[str, ...] = ("zoo:target",)
    one: str = ONE
    deeper: tuple[str, ...] = DEEPER
    wider: tuple[str, ...] = (
        "layers=1,width=96,heads=4,channels=24,feedforward=192",
        "layers=1,width=160,heads=4,channels=40,feedforward=320",
        "layers=1,width=320,heads=4,channels=80,feedforward=640",
    )
    larger: tuple[str, ...] = (
        "layers=2,width=128,heads=4,channels=32,feedforward=192",
        "layers=2,width=256,heads=4,channels=64,feedforward=384",
    )
    designed: tuple[str, ...] = (
        "layers=1,width=224,heads=2,channels=56,feedforward=592",
        "layers=1,width=224,heads=8,channels=56,feedforward=144",
    )
    depths: tuple[int, ...] = (2, 4, 6)
    batches: tuple[int, ...] = (1, 4)
    prompts: int = 8
    prompt: int = 64
    tokens: int = 96
    repetitions: int = 3
    probes: tuple[int, ...] = (1, 3, 7)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_counts("prompts", "prompt", "tokens", "repetitions")
        self._check_each("targets", "deeper", "depths", "batches", "probes")
        for field in ("depths", "batches", "probes"):
            if min(getattr(self, field)) < 1:
                raise ValueError(f"{field}={getattr(self, field)}: each is at least 1")
        for batch in self.batches:
            if self.prompts % batch:
                raise ValueError(f"batches={batch}: it must divide prompts={self.prompts}")
        if len(self.probes) < 2 or set(self.probes) & set(self.depths):
            raise ValueError(
                f"probes={self.probes}: at least two, and none of depths={self.depths}, which are "
                "foretold from them"
            )
        for text in self.words():
            called(text)
        if self.teaching.draft or self.teaching.head is not None:
            raise ValueError("teaching.draft, teaching.head: drafts of all shapes begin afresh")

    @property
    def mesh(self) -> str:
        return self.teaching.mesh

    def words(self) -> list[str]:
        """All shapes."""
        return [self.one, *self.deeper, *self.wider, *self.larger, *self.designed]

    def pupils(self, target: str, config: ModelConfig) -> list[Pupil]:
        """Who is taught by a target of that shape."""
        words = self.words() if target == self.targets[0] else [self.one, *self.deeper]
        return [Pupil(called(text), imagine(text, config)) for text in dict.fromkeys(words)]

    def taught_as(self, target: str, pupil: Pupil) -> Distillation:
        """How a draft is taught."""
        return replace(
            self.teaching,
            target=target,
            model=pupil.config,
            name=f"{folder_of(target)}/{pupil.name}",
            output=str(self.folder),
        )


def called(text: str) -> str:
    """A shape's layers and width, and the width of its attention where that is another; raises
    `ValueError` where `text` leaves one of these to a target."""
    said = dict(part.strip().partition("=")[::2] for part in text.split(","))
    try:
        layers, width, heads, channels = (int(said[name]) for name in NAMED)
    except (KeyError, ValueError):
        raise ValueError(
            f"draft={text!r}: drafts of all targets are to be alike, so give {', '.join(NAMED)}"
        ) from None
    attention = heads * channels
    return f"{layers}x{width}" + ("" if attention == width else f"a{attention}")


def folder_of(target: str) -> str:
    """A target's name as that of a folder."""
    return "".join(letter if letter.isalnum() else "_" for letter in target).strip("_")

"""The draft-shape study as data."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from jspec.config import ModelConfig
from jspec.plan.shapes import read_shape
from jspec.studies.common.recipe import SHORT_TRAINING, DecodingStudy
from jspec.training.recipe import Distillation, Text

# One layer of 1.42 million parameters, and as many in more and narrower ones.
ONE = "layers=1,width=224,heads=4,channels=56,feedforward=448"
DEEPER = (
    "layers=2,width=192,heads=4,channels=48,feedforward=288",
    "layers=4,width=160,heads=4,channels=40,feedforward=184",
    "layers=8,width=128,heads=4,channels=32,feedforward=120",
)
ZOO = replace(
    SHORT_TRAINING,
    name="draft_shape",
    draft="",
    model=ModelConfig(
        vocab_size=4096, hidden_size=224, intermediate_size=448, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=4, head_dim=56,
        max_position_embeddings=512, tie_word_embeddings=True,
    ),
    text=Text(weight=0.5),
    teacher_data=replace(SHORT_TRAINING.teacher_data, weight=0.5),
    evaluate_every=240,
)  # fmt: skip

# What a shape must give to have a name.
NAMED = "layers", "width", "heads", "channels"


class Shape(NamedTuple):
    """A shape that is trained: what tables call it, and what it is."""

    name: str
    config: ModelConfig


@dataclass(frozen=True, kw_only=True)
class DraftShapeStudy(DecodingStudy):
    """Drafts of many shapes trained alike, as Decoding Speculative Decoding asks
    (arXiv 2402.01528).

    Attributes:
      training: how each draft is trained; its target, model and name are the study's.
      targets: model folders; those after the first have `one` and `deeper` alone as drafts.
      one, deeper: shapes of equal parameters in words, of one layer and of more.
      wider: shapes of one layer; larger: of one proportion; designed: of one layer, whose attention
        is narrower or wider than the model, with as many parameters as `one`.
      depths, batches: of chains, and of texts that are decoded together.
      probes: depths of the chains from which costs are learned, none of `depths`.
    """

    name: str = "draft_shape"
    training: Distillation = ZOO
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
    max_new_tokens: int = 96
    probes: tuple[int, ...] = (1, 3, 7)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_distinct("targets", "deeper", "depths", "batches", "probes")
        self._check_counts("depths", "batches", "probes")
        for batch in self.batches:
            if self.prompts % batch:
                raise ValueError(f"batches={batch}: it must divide prompts={self.prompts}")
        if len(self.probes) < 2 or set(self.probes) & set(self.depths):
            raise ValueError(
                f"probes={self.probes}: at least two, and none of depths={self.depths}, which are "
                "predicted from them"
            )
        for text in self._words():
            name_of(text)
        if self.training.draft or self.training.head is not None:
            raise ValueError("training.draft, training.head: drafts of all shapes start fresh")

    def shapes(self, target: str, config: ModelConfig) -> list[Shape]:
        """What a target of that configuration trains."""
        words = self._words() if target == self.targets[0] else [self.one, *self.deeper]
        return [Shape(name_of(text), read_shape(text, config)) for text in dict.fromkeys(words)]

    def training_run(self, target: str, shape: Shape) -> Distillation:
        """How a draft is trained."""
        return replace(
            self.training,
            target=target,
            model=shape.config,
            name=f"{folder_of(target)}/{shape.name}",
            output=str(self.folder),
        )

    def _words(self) -> list[str]:
        return [self.one, *self.deeper, *self.wider, *self.larger, *self.designed]


def name_of(text: str) -> str:
    """A shape's layers and width, and the width of its attention where that is another; raises
    `ValueError` where `text` leaves one of these to a target."""
    parts = (part.strip().partition("=") for part in text.split(","))
    given = {name: value for name, _, value in parts}
    try:
        layers, width, heads, channels = (int(given[name]) for name in NAMED)
    except (KeyError, ValueError):
        raise ValueError(
            f"draft={text!r}: drafts of all targets are to be alike, so give {', '.join(NAMED)}"
        ) from None
    attention = heads * channels
    return f"{layers}x{width}" + ("" if attention == width else f"a{attention}")


def folder_of(target: str) -> str:
    """A target's name as that of a folder."""
    return "".join(letter if letter.isalnum() else "_" for letter in target).strip("_")

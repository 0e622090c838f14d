"""The temperature study as data."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from jspec.studies.common.recipe import SHORT_TRAINING, TrainingStudy
from jspec.training.recipe import Distillation, TeacherData, Temperatures, Text, read_temperatures

ZOO = replace(
    SHORT_TRAINING,
    name="temperature",
    text=Text(weight=0.0),
    teacher_data=TeacherData(
        count=384, prompt_length=32, max_new_tokens=96, batch_size=32, tree="chain:1"
    ),
    sequence_length=128,
    chunk_size=0,
    steps=160,
    learning_rate=3e-4,
    warmup_steps=10,
    save_every=160,
    tree="comb:2x1",
)


@dataclass(frozen=True, kw_only=True)
class TemperatureStudy(TrainingStudy):
    """Drafts that are trained at some temperatures and served at others, as TempSpec asks
    (arXiv 2410.10141). What the paper leaves open is ours: the loss, the drafting, the data. A seed
    has prompts, teacher-generated data and an order of its own; the temperatures of `training` are
    the study's.

    Attributes:
      train_temperatures: of the teacher-generated data and of the loss, tied: each a number, a set
        or a range.
      draft_temperatures: at which the draft alone is sampled, which needs no training.
      reference: the one of `train_temperatures` that the others are compared with.
      width: candidates of a node, and of a round; tree: of what is decoded and timed.
    """

    name: str = "temperature"
    training: Distillation = ZOO
    train_temperatures: tuple[str, ...] = (
        "0", "0.3", "0.7", "1", "1.5", "0.3..1.5", "0.3,0.7,1,1.5",
    )  # fmt: skip
    temperatures: tuple[float, ...] = (0.0, 0.3, 0.7, 1.0, 1.5, 2.0)
    draft_temperatures: tuple[float, ...] = (0.3, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0)
    reference: str = "1"
    width: int = 4
    tree: str = "comb:2x1"

    def __post_init__(self) -> None:
        super().__post_init__()
        generated, loss = self.training.teacher_data.temperature, self.training.loss_temperature
        if generated != "1" or loss:
            field = "loss_temperature" if generated == "1" else "teacher_data.temperature"
            raise ValueError(f"training.{field}: the study sets it: say it in train_temperatures")
        if self.training.head is not None:
            raise ValueError(
                f"training.head.kind={self.training.head.kind!r}: this study trains small models; "
                "jspec study feature-draft trains heads"
            )
        if self.width < 2:
            raise ValueError(f"width={self.width}: a node has at least 2 candidates")
        self._check_distinct("train_temperatures", "draft_temperatures")
        named = self.train_temperatures
        if self.reference not in named:
            raise ValueError(f"reference={self.reference!r} is not in train_temperatures={named}")
        if len({read_temperatures("train_temperatures", text) for text in named}) < len(named):
            raise ValueError(f"train_temperatures={named} names one temperature twice")
        for temperature in self.draft_temperatures:
            if not 0 < temperature < math.inf:
                raise ValueError(f"draft_temperatures={temperature}: must be a positive number")

    def runs(self) -> Iterator[tuple[str, int, Distillation]]:
        """Each draft that is trained: at which temperature, its seed, and its recipe."""
        for seed in range(self.seeds):
            for trained_at in self.train_temperatures:
                run = self.training_run(trained_at, seed)
                teacher_data = replace(run.teacher_data, temperature=trained_at)
                yield trained_at, seed, replace(run, teacher_data=teacher_data, loss_temperature="")

    def matched(self, temperature: float) -> str | None:
        """The one of `train_temperatures` that is this temperature."""
        alone = Temperatures((float(temperature),))
        for text in self.train_temperatures:
            if read_temperatures("train_temperatures", text) == alone:
                return text
        return None

"""What deciders that keep nothing from round to round have in common."""

from dataclasses import dataclass

from jax import Array

from jspec.candidates import Rule
from jspec.draft.stopping.protocol import check_threshold
from jspec.models.protocol import Params


@dataclass(frozen=True)
class Forgetful:
    """Decides by the round alone, under every rule, and has no parameters."""

    threshold: float

    def __post_init__(self) -> None:
        check_threshold(self.threshold)

    def admit(self, rule: Rule) -> None:
        """Under every rule."""

    def check(self, params: Params) -> None:
        """It has none."""

    def start(self, batch: int) -> tuple[()]:
        return ()

    def learn(self, memory: tuple[()], kept: Array, levels: Array) -> tuple[()]:
        return memory

"""What decides whether another level is drafted."""

from typing import Any, NamedTuple, Protocol

from jax import Array

from jspec.candidates import Dice, Rule
from jspec.models.protocol import Params
from jspec.sampling import Sampling

Memory = Any


class Seen(NamedTuple):
    """A level of T nodes whose children were drawn, and the round that it belongs to.

    Attributes:
      dice: those of the round where draft and target share them, which is where the rule has a
        score; None under rejection.
      hidden: `[B, T, D]` and logits: `[B, T, V]`, the draft's, warped.
      children: `[B, T, W]` the tokens that were drawn.
    """

    rule: Rule
    dice: Dice | None
    sampling: Sampling
    depth: int
    hidden: Array
    logits: Array
    children: Array


class Stop(Protocol):
    """Hashable, so that jit takes it as a static argument; what it remembers is a pytree."""

    threshold: float
    """A row goes on for as long as `judge` gives it more than this."""

    def admit(self, rule: Rule) -> None:
        """Raises `ValueError` with the reason if it can decide nothing under the rule."""

    def check(self, params: Params) -> None:
        """Raises `ValueError` if these are not its parameters."""

    def start(self, batch: int) -> Memory:
        """What it remembers before the first round."""

    def judge(self, params: Params, memory: Memory, worth: Array, seen: Seen) -> Array:
        """What drafting on below the children of a level is worth to each row, `[B]` in [0, 1].

        It may hang on all that is seen, and so on what was drawn, which is kept whatever is found.

        Args:
          worth: `[B]` what it gave one level above; 1 at the root.
        """

    def learn(self, memory: Memory, kept: Array, levels: Array) -> Memory:
        """What it remembers after a round that kept `kept` `[B]` of `levels` `[B]` drafted
        levels."""


def check_threshold(threshold: float) -> None:
    """Raises `ValueError` outside [0, 1]."""
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold}: must lie between 0 (never stop) and 1")

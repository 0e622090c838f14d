"""How much of what was guessed in earlier rounds of the same sequence was kept."""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import struct
from jax import Array

from jspec.candidates import Rule
from jspec.draft.stopping.protocol import Seen, check_threshold
from jspec.models.protocol import Params

# Of a level before anything is known of the sequence, and as of how many levels that counts.
BEFORE, COUNTED = 0.7, 4.0


@struct.dataclass
class Kept:
    """Levels that were kept and levels that were tested, `[B]` each; older rounds count less."""

    kept: Array
    tested: Array


@dataclass(frozen=True)
class Running:
    """A level is worth the running share of levels kept, to the power of its depth.

    Attributes:
      fading: what a round counts once the next one is over.
    """

    threshold: float
    fading: float = 0.9

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        if not 0 <= self.fading <= 1:
            raise ValueError(f"fading={self.fading}: must lie between 0 and 1")

    def admit(self, rule: Rule) -> None:
        """Under every rule."""

    def check(self, params: Params) -> None:
        """It has none."""

    def start(self, batch: int) -> Kept:
        return Kept(jnp.full((batch,), BEFORE * COUNTED), jnp.full((batch,), COUNTED))

    def judge(self, params: Params, memory: Kept, worth: Array, seen: Seen) -> Array:
        return worth * memory.kept / memory.tested

    def learn(self, memory: Kept, kept: Array, levels: Array) -> Kept:
        # The level after the last that was kept was tested too, if it was drafted.
        tested = jnp.minimum(kept + 1, levels)
        return Kept(self.fading * memory.kept + kept, self.fading * memory.tested + tested)

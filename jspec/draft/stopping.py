"""What decides whether another level is drafted.

What deciders that keep nothing from round to round have in common.

The draft's own top probability.

The entropy of the draft's law.

How far the candidates lie ahead of the rest under the dice that the target throws as well.

How much of what was guessed in earlier rounds of the same sequence was kept.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jspec.core.candidates import Dice, Rule
from jspec.core.sampling import Sampling
from jspec.models.protocol import Params

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


@dataclass(frozen=True)
class Confidence(Forgetful):
    """A path is worth the product of the top probabilities along it, where a level's is that of its
    surest node, whatever stood above that one."""

    def judge(self, params: Params, memory: tuple[()], worth: Array, seen: Seen) -> Array:
        total = jax.nn.logsumexp(seen.logits, axis=-1)
        return worth * jnp.exp(seen.logits.max(axis=-1) - total).max(axis=-1)


@dataclass(frozen=True)
class Entropy(Forgetful):
    """A path is worth `exp(-H)` for the sum H of the entropies along it, in nats: one in as many as
    a draw is between. A level is worth its surest node's, whatever stood above that one."""

    def judge(self, params: Params, memory: tuple[()], worth: Array, seen: Seen) -> Array:
        return worth * jnp.exp(-entropy(seen.logits).min(axis=-1))


def entropy(logits: Array) -> Array:
    """In nats, of `[..., V]` logits."""
    log = jax.nn.log_softmax(logits)
    # A token that is left out has probability 0, and adds nothing.
    return -jnp.where(log > -jnp.inf, jnp.exp(log) * log, 0.0).sum(axis=-1)


@dataclass(frozen=True)
class Margin(Forgetful):
    """A path is worth the product of what the rule's score gives to the children of its nodes
    together: under the coupled rule a function of the margins between perturbed logits. A level is
    worth its surest node's, whatever stood above that one, and a node is given as many children as
    the widest of its level has."""

    def admit(self, rule: Rule) -> None:
        if not hasattr(rule, "score"):
            name = getattr(rule, "__name__", "lossy").rpartition(".")[2]
            raise ValueError(
                f"stop=margin reads dice that draft and target share, and rule={name!r} has none: "
                "use confidence or entropy, or rule=coupled"
            )

    def judge(self, params: Params, memory: tuple[()], worth: Array, seen: Seen) -> Array:
        scores = seen.rule.score(
            seen.dice, seen.logits, seen.children, seen.sampling, depth=seen.depth
        )
        return worth * jnp.minimum(jnp.exp(jax.nn.logsumexp(scores, axis=-1)).max(axis=-1), 1.0)


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

"""A static tree of guesses, grown level by level with the dice of a rule."""

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from jax import Array

from jspec.candidates import Candidates, Dice, Rule
from jspec.draft.protocol import Text
from jspec.penalties import Ahead
from jspec.sampling import Sampling, warp
from jspec.tree import Tree

Carry = TypeVar("Carry")


class Level(NamedTuple):
    """What a draft runs at a depth: the inner nodes `new` `[T]` of that level.

    Attributes:
      start: how many inner nodes come before them.
      mask: `[T, start + T]` which of the inner nodes so far each of them sees.
    """

    depth: int
    new: np.ndarray
    start: int
    mask: np.ndarray


def grow(
    carry: Carry,
    text: Text,
    dice: Dice,
    sampling: Sampling,
    *,
    tree: Tree,
    rule: Rule,
    run: Callable[[Level, Array, Carry], tuple[Array, Carry]],
) -> tuple[Candidates, Carry]:
    """Guesses below the root, the last token of the text; children are what the rule draws.

    Args:
      run: the draft. Given a level, the tokens `[B, T]` of its inner nodes and the carry, returns
        their logits `[B, T, V]` over the target's vocabulary and the new carry.
    """
    batch = len(text.length)
    guesses = text.tokens[jnp.arange(batch), text.length - 1][:, None]
    valid, weighed = jnp.ones((batch, 1), bool), []
    for level in levels(tree):
        new = level.new
        logits, carry = run(level, guesses[:, new], carry)
        ahead = Ahead(guesses[:, 1:], jnp.asarray(tree.mask[new, 1 : guesses.shape[1]]))
        logits = warp(logits, sampling, text.history, ahead)
        tokens, there = rule.draw(dice, logits, tree=tree, depth=level.depth, nodes=new)
        below = tree.level(level.depth + 1)
        place = np.searchsorted(new, tree.parents[below]), tree.ranks[below]
        guesses = jnp.concatenate([guesses, tokens[:, *place]], axis=1)
        valid = jnp.concatenate([valid, there[:, *place]], axis=1)
        weighed.append(logits)
    candidates = Candidates(
        tokens=guesses,
        parent=jnp.broadcast_to(jnp.asarray(tree.parents), guesses.shape),
        valid=valid,
        logits=jnp.concatenate(weighed, axis=1) if rule.WEIGHS else None,
    )
    return candidates, carry


def levels(tree: Tree) -> Iterator[Level]:
    """Those that have inner nodes, which are all but the last."""
    run = np.array([], int)
    for depth in range(tree.depth):
        level = tree.level(depth)
        new = level.start + np.flatnonzero(tree.inner[level])
        start, run = len(run), np.append(run, new)
        yield Level(depth, new, start, tree.mask[np.ix_(new, run)])

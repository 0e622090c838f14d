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
NO_ROW = -1


class Level(NamedTuple):
    """What a draft runs at a depth: T nodes that get children, each the next row of its block.

    Attributes:
      start: how many rows come before them.
      parent: `[T]` or `[B, T]` the rows of their parents; the root's is -1.
      mask: `[T, start + T]` or `[B, T, start + T]` bool, which of the rows so far each of them
        sees.
    """

    depth: int
    start: int
    parent: np.ndarray | Array
    mask: np.ndarray | Array


def grow(
    carry: Carry,
    text: Text,
    dice: Dice,
    sampling: Sampling,
    *,
    tree: Tree,
    rule: Rule,
    run: Callable[[Level, Array, Carry], tuple[Array, Carry]],
) -> tuple[Candidates, Array, Carry]:
    """Guesses below the root, the last token of the text; children are what the rule draws.

    Args:
      run: the draft. Given a level, the tokens `[B, T]` of its nodes and the carry, returns their
        logits `[B, T, V]` over the target's vocabulary and the new carry.

    Returns:
      The candidates, `[B, N]` the row that each node is in the draft's block, -1 for those that it
      did not run, and the carry.
    """
    batch = len(text.length)
    guesses = text.tokens[jnp.arange(batch), text.length - 1][:, None]
    valid, weighed = jnp.ones((batch, 1), bool), []
    for new, level in inner_levels(tree):
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
    return candidates, jnp.broadcast_to(jnp.asarray(rows_of(tree)), guesses.shape), carry


def rows_of(tree: Tree) -> np.ndarray:
    """`[N]` the rows of the inner nodes, and -1 for the leaves, which a draft does not run."""
    return np.where(tree.inner, np.cumsum(tree.inner) - 1, NO_ROW)


def inner_levels(tree: Tree) -> Iterator[tuple[np.ndarray, Level]]:
    """All but the last level, and which nodes `[T]` of it are inner ones."""
    rows, run = rows_of(tree), np.array([], int)
    for depth in range(tree.depth):
        level = tree.level(depth)
        new = level.start + np.flatnonzero(tree.inner[level])
        start, run = len(run), np.append(run, new)
        parent = rows[np.array(tree.parents)[new]] if depth else np.array([NO_ROW])
        yield new, Level(depth, start, parent, tree.mask[np.ix_(new, run)])

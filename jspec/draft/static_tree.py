"""A static tree of guesses, grown level by level with the dice of a rule."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from jax import Array

from jspec.core.candidates import Candidates, Dice, Rule
from jspec.core.penalties import Ahead
from jspec.core.sampling import Sampling, warp
from jspec.core.tree import Tree
from jspec.draft.protocol import Text

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


class Drawn(NamedTuple):
    """What a level of T nodes was given.

    Attributes:
      hidden: `[B, T, D]` the draft's; logits: `[B, T, V]` its warped logits.
      children: `[B, T, W]` what was drawn from them.
      tokens, there: `[B, n]` the nodes of the level below, and which of them there are.
    """

    hidden: Array
    logits: Array
    children: Array
    tokens: Array
    there: Array


Run = Callable[[Level, Array, Carry], tuple[Array, Array, Carry]]
"""A draft. Given a level, the tokens `[B, T]` of its nodes and the carry, returns its hidden states
`[B, T, D]`, their logits `[B, T, V]` over the target's vocabulary, and the new carry."""

Grow = Callable[..., tuple[Candidates, Array, Carry]]
"""`grow`, or another way with its signature to guess below a root."""


def grow(
    carry: Carry,
    text: Text,
    dice: Dice,
    sampling: Sampling,
    *,
    tree: Tree,
    rule: Rule,
    run: Run,
) -> tuple[Candidates, Array, Carry]:
    """Guesses below the root, the last token of the text; children are what the rule draws.

    Returns:
      The candidates, `[B, N]` the row that each node is in the draft's block, -1 for those that it
      did not run, and the carry.
    """
    guesses, levels = root_of(text), []
    for new, level in inner_levels(tree):
        drawn, carry = draw_level(
            new, level, guesses, carry, text, dice, sampling, tree=tree, rule=rule, run=run
        )
        guesses = jnp.concatenate([guesses, drawn.tokens], axis=1)
        levels.append(drawn)
    rows = jnp.broadcast_to(jnp.asarray(rows_of(tree)), guesses.shape)
    return gathered(guesses, levels, tree=tree, rule=rule), rows, carry


def root_of(text: Text) -> Array:
    """`[B, 1]` the last tokens."""
    return text.tokens[jnp.arange(len(text.length)), text.length - 1][:, None]


def draw_level(
    new: np.ndarray,
    level: Level,
    guesses: Array,
    carry: Carry,
    text: Text,
    dice: Dice,
    sampling: Sampling,
    *,
    tree: Tree,
    rule: Rule,
    run: Run,
) -> tuple[Drawn, Carry]:
    """Runs the draft on the nodes `new` `[T]` of a level, and draws their children.

    Args:
      guesses: `[B, n]` the tokens of all nodes so far.
    """
    hidden, logits, carry = run(level, guesses[:, new], carry)
    ahead = Ahead(guesses[:, 1:], jnp.asarray(tree.mask[new, 1 : guesses.shape[1]]))
    logits = warp(logits, sampling, text.history, ahead)
    children, there = rule.draw(dice, logits, tree=tree, depth=level.depth, nodes=new)
    below = tree.level(level.depth + 1)
    place = np.searchsorted(new, tree.parents[below]), tree.ranks[below]
    return Drawn(hidden, logits, children, children[:, *place], there[:, *place]), carry


def gathered(guesses: Array, levels: Sequence[Drawn], *, tree: Tree, rule: Rule) -> Candidates:
    """The tree whose nodes are `guesses` `[B, N]`, as they were drawn level by level."""
    root = jnp.ones((len(guesses), 1), bool)
    return Candidates(
        tokens=guesses,
        parent=jnp.broadcast_to(jnp.asarray(tree.parents), guesses.shape),
        valid=jnp.concatenate([root, *(drawn.there for drawn in levels)], axis=1),
        logits=jnp.concatenate([x.logits for x in levels], axis=1) if rule.WEIGHS else None,
    )


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

"""Drafting along a static tree, level by level: children are what the rule draws."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from jax import Array

from jspec.core.candidates import Candidates, Randomness, Rule
from jspec.core.penalties import TreeContext
from jspec.core.sampling import SamplingParams, process_logits
from jspec.core.tree import Tree
from jspec.draft.protocol import DraftContext

Carry = TypeVar("Carry")
NO_ROW = -1


class TreeLevel(NamedTuple):
    """What a draft runs at a depth: T nodes that have children, each the next row of its block.

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


class DraftedLevel(NamedTuple):
    """What a level of T nodes was given.

    Attributes:
      hidden: `[B, T, D]` the draft's; logits: `[B, T, V]` its processed logits.
      children: `[B, T, W]` the tokens that were drawn from them.
      tokens, valid: `[B, n]` the nodes of the level below, and which of them exist.
    """

    hidden: Array
    logits: Array
    children: Array
    tokens: Array
    valid: Array


RunDraft = Callable[[TreeLevel, Array, Carry], tuple[Array, Array, Carry]]
"""A draft. Given a level, the tokens `[B, T]` of its nodes and the carry, returns its hidden states
`[B, T, D]`, their logits `[B, T, V]` over the target's vocabulary, and the new carry."""

DraftTree = Callable[..., tuple[Candidates, Array, Carry]]
"""`draft_static_tree`, or another function with its signature that drafts below a root."""


def draft_static_tree(
    carry: Carry,
    context: DraftContext,
    noise: Randomness,
    sampling: SamplingParams,
    *,
    tree: Tree,
    rule: Rule,
    run: RunDraft,
) -> tuple[Candidates, Array, Carry]:
    """Drafts below the root, one level after the other.

    Returns:
      The candidates, `[B, N]` the row that each node has in the draft's block, -1 for those that it
      did not run, and the carry.
    """
    tokens, levels = context.root, []
    for nodes, level in inner_levels(tree):
        drafted, carry = draft_level(
            nodes, level, tokens, carry, context, noise, sampling, tree=tree, rule=rule, run=run
        )
        tokens = jnp.concatenate([tokens, drafted.tokens], axis=1)
        levels.append(drafted)
    rows = jnp.broadcast_to(jnp.asarray(rows_of(tree)), tokens.shape)
    return to_candidates(tokens, levels, tree=tree, rule=rule), rows, carry


def draft_level(
    nodes: np.ndarray,
    level: TreeLevel,
    tokens: Array,
    carry: Carry,
    context: DraftContext,
    noise: Randomness,
    sampling: SamplingParams,
    *,
    tree: Tree,
    rule: Rule,
    run: RunDraft,
) -> tuple[DraftedLevel, Carry]:
    """Runs the draft on the `nodes` `[T]` of a level, and draws their children.

    Args:
      tokens: `[B, n]` of all nodes so far.
    """
    hidden, logits, carry = run(level, tokens[:, nodes], carry)
    above = TreeContext(tokens[:, 1:], jnp.asarray(tree.mask[nodes, 1 : tokens.shape[1]]))
    logits = process_logits(logits, sampling, context.counts, above)
    children, valid = rule.draw(noise, logits, tree=tree, depth=level.depth, nodes=nodes)
    below = tree.level(level.depth + 1)
    place = np.searchsorted(nodes, tree.parents[below]), tree.ranks[below]
    return DraftedLevel(hidden, logits, children, children[:, *place], valid[:, *place]), carry


def to_candidates(
    tokens: Array, levels: Sequence[DraftedLevel], *, tree: Tree, rule: Rule
) -> Candidates:
    """The tree whose nodes are `tokens` `[B, N]`, as they were drafted level by level."""
    root = jnp.ones((len(tokens), 1), bool)
    logits = None
    if rule.needs_draft_logits:
        logits = jnp.concatenate([level.logits for level in levels], axis=1)
    return Candidates(
        tokens=tokens,
        parent=jnp.broadcast_to(jnp.asarray(tree.parents, jnp.int32), tokens.shape),
        valid=jnp.concatenate([root, *(level.valid for level in levels)], axis=1),
        draft_logits=logits,
    )


def rows_of(tree: Tree) -> np.ndarray:
    """`[N]` the rows of the inner nodes, and -1 for the leaves, which a draft does not run."""
    return np.where(tree.inner, np.cumsum(tree.inner) - 1, NO_ROW).astype(np.int32)


def inner_levels(tree: Tree) -> Iterator[tuple[np.ndarray, TreeLevel]]:
    """All but the last level, and which nodes `[T]` of it are inner ones."""
    rows, run = rows_of(tree), np.array([], int)
    for depth in range(tree.depth):
        level = tree.level(depth)
        nodes = level.start + np.flatnonzero(tree.inner[level])
        start, run = len(run), np.append(run, nodes)
        parent = rows[np.array(tree.parents)[nodes]] if depth else np.array([NO_ROW], np.int32)
        yield nodes, TreeLevel(depth, start, parent, tree.mask[np.ix_(nodes, run)])

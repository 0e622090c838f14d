"""Drafting a dynamic tree, which expands where the rule scores best (EAGLE-2, section 4)."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jspec.core.candidates import Candidates, Randomness, Rule
from jspec.core.penalties import TreeContext
from jspec.core.sampling import SamplingParams, process_logits
from jspec.core.tree import DynamicTree
from jspec.draft.protocol import DraftContext
from jspec.draft.static_tree import NO_ROW, Carry, RunDraft, TreeLevel


class _Drafted(NamedTuple):
    """Nodes in the order in which they were drafted, every field `[B, G]`.

    Attributes:
      score: the sum of what the rule gives for every step of the path, at most its parent's.
      parent: the row of the parent in the draft's block; row: its own, -1 if it has no children.
    """

    token: Array
    score: Array
    depth: Array
    parent: Array
    row: Array


class _Frontier(NamedTuple):
    """The nodes of a level that are expanded: T of them, in the order of their drafting.

    Attributes:
      token, score: `[B, T]`, as above.
      level: what the draft runs there.
    """

    token: Array
    score: Array
    level: TreeLevel


def draft_dynamic_tree(
    carry: Carry,
    context: DraftContext,
    noise: Randomness,
    sampling: SamplingParams,
    *,
    tree: DynamicTree,
    rule: Rule,
    run: RunDraft,
) -> tuple[Candidates, Array, Carry]:
    """Drafts below the root as `draft_static_tree` does, with a tree of its own for every sequence.

    The nodes are in the order in which they were drafted: breadth-first, parents before children.
    """
    batch, root = len(context.length), context.root
    alone = TreeLevel(0, 0, jnp.full((batch, 1), NO_ROW, jnp.int32), jnp.ones((batch, 1, 1), bool))
    frontier = _Frontier(root, jnp.zeros((batch, 1), jnp.float32), alone)
    tokens_run, levels, drafted = root[:, :0], [], []
    for depth in range(tree.depth):
        level = frontier.level
        _, logits, carry = run(level, frontier.token, carry)
        tokens_run = jnp.concatenate([tokens_run, frontier.token], axis=1)
        above = TreeContext(tokens_run[:, 1:], jnp.asarray(level.mask[..., 1:]))
        logits = process_logits(logits, sampling, context.counts, above)
        places = np.arange(level.start, tokens_run.shape[1])
        tokens, _ = rule.draw(noise, logits, tree=tree, depth=depth, nodes=places)
        scores = rule.score(noise, logits, tokens, sampling, depth=depth)
        below = _children(frontier, tokens, scores)
        levels.append(level)
        if depth + 1 < tree.depth:
            below, frontier = _expand(frontier, below, tree.width)
        drafted.append(below)
    drafted = _Drafted(*(jnp.concatenate(parts, axis=1) for parts in zip(*drafted, strict=True)))
    candidates, rows = _rerank(root, drafted, _block_mask(levels), tree.size)
    return candidates, rows, carry


def best(scores: Array, count: int) -> Array:
    """The places of the `count` best of `[B, G]` scores, in the order in which they stand.

    Of equal scores the earlier is the better. A child is drafted after its parent and scores no
    more, so a node that is better than the parent is better than the child: no child is chosen
    without its parent.
    """
    place = jnp.arange(scores.shape[1], dtype=jnp.int32)
    mine, other = scores[:, :, None], scores[:, None, :]
    better = (other > mine) | ((other == mine) & (place[None] < place[:, None])[None])
    chosen = better.sum(axis=-1, dtype=jnp.int32) < count
    rank = jnp.where(chosen, jnp.cumsum(chosen, axis=-1, dtype=jnp.int32) - 1, count)
    there = rank[:, None, :] == jnp.arange(count, dtype=jnp.int32)[None, :, None]
    return jnp.argmax(there, axis=-1).astype(jnp.int32)


def _children(frontier: _Frontier, tokens: Array, scores: Array) -> _Drafted:
    """The nodes `[B, T, W]` below a level, none of which has children yet."""
    # Never more likely than the parent, whatever the rule says; NaN is the least.
    scores = jnp.where(scores > -jnp.inf, jnp.minimum(scores, 0), -jnp.inf)
    batch, nodes, width = tokens.shape
    flat = batch, nodes * width
    parent = frontier.level.start + jnp.repeat(jnp.arange(nodes, dtype=jnp.int32), width)
    return _Drafted(
        token=tokens.reshape(flat),
        score=(frontier.score[..., None] + scores).reshape(flat),
        depth=jnp.full(flat, frontier.level.depth + 1, jnp.int32),
        parent=jnp.broadcast_to(parent, flat),
        row=jnp.full(flat, NO_ROW, jnp.int32),
    )


def _expand(frontier: _Frontier, drafted: _Drafted, width: int) -> tuple[_Drafted, _Frontier]:
    """The best of a level are run next: they get rows, and become the frontier."""
    above = frontier.level
    start = above.start + above.mask.shape[1]
    chosen = best(drafted.score, width)
    token, score, parent = (
        jnp.take_along_axis(x, chosen, axis=1)
        for x in (drafted.token, drafted.score, drafted.parent)
    )
    seen = jnp.take_along_axis(above.mask, (parent - above.start)[..., None], axis=1)
    own = jnp.broadcast_to(jnp.eye(width, dtype=bool), (len(seen), width, width))
    level = TreeLevel(above.depth + 1, start, parent, jnp.concatenate([seen, own], axis=-1))
    batch = jnp.arange(len(chosen), dtype=jnp.int32)[:, None]
    rows = start + jnp.arange(width, dtype=jnp.int32)[None]
    row = drafted.row.at[batch, chosen].set(rows)
    return drafted._replace(row=row), _Frontier(token, score, level)


def _block_mask(levels: list[TreeLevel]) -> Array:
    """`[B, R, R]`: which of the rows that were run each of them sees."""
    rows = levels[-1].mask.shape[-1]
    missing = (rows - level.mask.shape[-1] for level in levels)
    return jnp.concatenate(
        [
            jnp.pad(level.mask, ((0, 0), (0, 0), (0, none)))
            for level, none in zip(levels, missing, strict=True)
        ],
        axis=1,
    )


def _rerank(root: Array, drafted: _Drafted, mask: Array, size: int) -> tuple[Candidates, Array]:
    """The root `[B, 1]` and the best of what was drafted, `size` nodes, and `[B, N]` their rows."""
    chosen = best(drafted.score, size - 1)
    nodes = _Drafted(*(jnp.take_along_axis(x, chosen, axis=1) for x in drafted))
    pad = jnp.zeros_like(root)
    token = jnp.concatenate([root, nodes.token], axis=1)
    depth, row = (jnp.concatenate([pad, x], axis=1) for x in (nodes.depth, nodes.row))
    # A node that is chosen has its parent chosen, and no two nodes have the same row.
    parent = jnp.argmax(row[:, None, :] == nodes.parent[:, :, None], axis=-1)
    batch = jnp.arange(len(root), dtype=jnp.int32)[:, None, None]
    above = mask[batch, nodes.parent[:, :, None], row[:, None, :]] & (row != NO_ROW)[:, None, :]
    above = jnp.pad(above, ((0, 0), (1, 0), (0, 0)))
    candidates = Candidates(
        tokens=token,
        parent=jnp.concatenate([pad - 1, parent.astype(jnp.int32)], axis=1),
        valid=jnp.ones(token.shape, bool),
        depth=depth,
        mask=above | jnp.eye(size, dtype=bool)[None],
    )
    return candidates, row

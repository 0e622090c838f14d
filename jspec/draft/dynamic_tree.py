"""A tree of guesses that grows where a rule scores them best (EAGLE-2, sections 4.1 and 4.2)."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jspec.core.candidates import Candidates, Dice, Rule
from jspec.core.penalties import Ahead
from jspec.core.sampling import Sampling, warp
from jspec.core.tree import Growth
from jspec.draft.protocol import Text
from jspec.draft.static_tree import NO_ROW, Carry, Level, Run, root_of


class _Made(NamedTuple):
    """Guesses in the order in which they were made, every field `[B, G]`.

    Attributes:
      score: the sum of what the rule gives for every step of the path, at most its parent's.
      parent: the row of the parent in the draft's block; row: its own, -1 if it got no children.
    """

    token: Array
    score: Array
    depth: Array
    parent: Array
    row: Array


class _Front(NamedTuple):
    """The nodes of a level that get children: T of them, in the order of their making.

    Attributes:
      token, score: `[B, T]`, as above.
      level: what the draft runs there.
    """

    token: Array
    score: Array
    level: Level


def expand(
    carry: Carry,
    text: Text,
    dice: Dice,
    sampling: Sampling,
    *,
    tree: Growth,
    rule: Rule,
    run: Run,
) -> tuple[Candidates, Array, Carry]:
    """Guesses below the root as `growing.grow` does it, with a tree of its own for every sequence.

    The nodes stand in the order in which they were made: breadth-first, parents before children.
    """
    batch = len(text.length)
    root = root_of(text)
    alone = Level(0, 0, jnp.full((batch, 1), NO_ROW), jnp.ones((batch, 1, 1), bool))
    front = _Front(root, jnp.zeros((batch, 1)), alone)
    run_so_far, levels, made = root[:, :0], [], []
    for depth in range(tree.depth):
        level = front.level
        _, logits, carry = run(level, front.token, carry)
        run_so_far = jnp.concatenate([run_so_far, front.token], axis=1)
        ahead = Ahead(run_so_far[:, 1:], level.mask[..., 1:])
        logits = warp(logits, sampling, text.history, ahead)
        places = np.arange(level.start, run_so_far.shape[1])
        tokens, _ = rule.draw(dice, logits, tree=tree, depth=depth, nodes=places)
        steps = rule.score(dice, logits, tokens, sampling, depth=depth)
        below = _children(front, tokens, steps)
        levels.append(level)
        if depth + 1 < tree.depth:
            below, front = _advance(front, below, tree.width)
        made.append(below)
    made = _Made(*(jnp.concatenate(parts, axis=1) for parts in zip(*made, strict=True)))
    candidates, rows = _choose(root, made, _block_mask(levels), tree.size)
    return candidates, rows, carry


def best(scores: Array, count: int) -> Array:
    """The places of the `count` best of `[B, G]` scores, in the order in which they stand.

    Of equal scores the earlier is the better. A child is made after its parent and scores no more,
    so whoever is better than the parent is better than the child: no child is chosen without it.
    """
    place = jnp.arange(scores.shape[1])
    mine, other = scores[:, :, None], scores[:, None, :]
    better = (other > mine) | ((other == mine) & (place[None] < place[:, None])[None])
    kept = better.sum(axis=-1) < count
    rank = jnp.where(kept, jnp.cumsum(kept, axis=-1) - 1, count)
    return jnp.argmax(rank[:, None, :] == jnp.arange(count)[None, :, None], axis=-1)


def _children(front: _Front, tokens: Array, steps: Array) -> _Made:
    """The guesses `[B, T, W]` below a level, none of which got children as yet."""
    # Never more likely than the parent, whatever the rule says; what is not a number is the least.
    steps = jnp.where(steps > -jnp.inf, jnp.minimum(steps, 0), -jnp.inf)
    batch, nodes, width = tokens.shape
    flat = batch, nodes * width
    parent = front.level.start + jnp.repeat(jnp.arange(nodes), width)
    return _Made(
        token=tokens.reshape(flat),
        score=(front.score[..., None] + steps).reshape(flat),
        depth=jnp.full(flat, front.level.depth + 1),
        parent=jnp.broadcast_to(parent, flat),
        row=jnp.full(flat, NO_ROW),
    )


def _advance(front: _Front, made: _Made, width: int) -> tuple[_Made, _Front]:
    """The best of a level are run next: they get rows, and become the front."""
    above = front.level
    start = above.start + above.mask.shape[1]
    chosen = best(made.score, width)
    token, score, parent = (
        jnp.take_along_axis(x, chosen, axis=1) for x in (made.token, made.score, made.parent)
    )
    seen = jnp.take_along_axis(above.mask, (parent - above.start)[..., None], axis=1)
    own = jnp.broadcast_to(jnp.eye(width, dtype=bool), (len(seen), width, width))
    level = Level(above.depth + 1, start, parent, jnp.concatenate([seen, own], axis=-1))
    batch = jnp.arange(len(chosen))[:, None]
    row = made.row.at[batch, chosen].set(start + jnp.arange(width)[None])
    return made._replace(row=row), _Front(token, score, level)


def _block_mask(levels: list[Level]) -> Array:
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


def _choose(root: Array, made: _Made, seen: Array, size: int) -> tuple[Candidates, Array]:
    """The root `[B, 1]` and the best of what was made, `size` nodes, and `[B, N]` their rows."""
    chosen = best(made.score, size - 1)
    kept = _Made(*(jnp.take_along_axis(x, chosen, axis=1) for x in made))
    pad = jnp.zeros_like(root)
    token = jnp.concatenate([root, kept.token], axis=1)
    depth, row = (jnp.concatenate([pad, x], axis=1) for x in (kept.depth, kept.row))
    # A node that was kept has its parent kept, and no two nodes have the same row.
    parent = jnp.argmax(row[:, None, :] == kept.parent[:, :, None], axis=-1)
    batch = jnp.arange(len(root))[:, None, None]
    above = seen[batch, kept.parent[:, :, None], row[:, None, :]] & (row != NO_ROW)[:, None, :]
    above = jnp.pad(above, ((0, 0), (1, 0), (0, 0)))
    candidates = Candidates(
        tokens=token,
        parent=jnp.concatenate([pad - 1, parent.astype(jnp.int32)], axis=1),
        valid=jnp.ones(token.shape, bool),
        depth=depth,
        mask=above | jnp.eye(size, dtype=bool)[None],
    )
    return candidates, row

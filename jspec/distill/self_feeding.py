"""What a head guesses of a whole text when it reads its own guesses, as it does in drafting.

In the first pass it reads the target's features. In each pass after that it reads, beside every
token, what it guessed in the pass before, and looks back at its own rows as far as it has fed
itself: the rows that drafting would give it at that depth. (EAGLE-3's training-time test; HASS does
the same and stops the gradient between its passes, and here it flows.)
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jspec.core.cache import Block
from jspec.distill.batch import Batch
from jspec.models.heads import Head
from jspec.models.protocol import Params


class Seen(NamedTuple):
    """What a pass looks back at: rows at `places` `[n]` of pass `number`, as a block of n rows."""

    number: int
    places: Array
    block: Block


class Carry(NamedTuple):
    """What one chunk leaves the next: of every pass the last `features` `[B, 1, D]`, and of all but
    the first and the last the rows that are still in reach."""

    features: list[Array]
    blocks: list[Block]


def self_fed(
    params: Params,
    embedded: Array,
    features: Array,
    batch: Batch,
    *,
    head: Head,
    passes: int,
    chunk: int,
) -> tuple[Array, Array]:
    """What a head of one layer guesses, pass by pass: hidden states and features `[k, B, T, D]`.

    Row t holds the embedding of token t + 1 and the feature of token t. In pass j of the k, counted
    from 0, it reads in place of that feature what pass j - 1 guessed in row t - 1, and sees of pass
    0 the rows up to t - j, and row t - i of pass j - i for i < j. Memory grows with the passes, and
    not with the square of T.

    Args:
      embedded: `[B, T, D]`, of tokens 1 to T.
      features: `[B, T, D]`, of tokens 0 to T - 1.
      chunk: rows that are computed at a time, a divisor of T.
    """
    length, reach = embedded.shape[1], max(passes - 2, 0)
    whole = _keys_and_values(params, embedded, features, batch, head=head, chunk=chunk)

    @jax.checkpoint
    def advance(carry: Carry, first: Array) -> tuple[Carry, tuple[Array, Array]]:
        new = first + jnp.arange(chunk)
        inputs = (embedded, features, batch.positions)
        tokens, read, positions = (
            jax.lax.dynamic_slice_in_dim(x, first, chunk, axis=1) for x in inputs
        )
        seen, guesses = [Seen(0, jnp.arange(length), whole)], []
        for number in range(passes):
            block, start = _room([one.block for one in seen], chunk)
            mask = _mask(batch.document, seen, number, new)
            guess = head.forward(params, tokens, read, positions, mask, None, block, start)
            guesses.append((guess.hidden, guess.features))
            if 0 < number < passes - 1:
                own = jax.tree.map(lambda x: x[:, :, -chunk:], guess.block)
                recent = jax.tree.map(_beside, carry.blocks[number - 1], own)
                seen.append(Seen(number, first - reach + jnp.arange(reach + chunk), recent))
            read = jnp.concatenate([carry.features[number], guess.features[:, :-1]], axis=1)
        carry = Carry(
            [following[:, -1:] for _, following in guesses],
            [jax.tree.map(lambda x: x[:, :, chunk:], one.block) for one in seen[1:]],
        )
        return carry, tuple(map(jnp.stack, zip(*guesses, strict=True)))

    nothing = jax.tree.map(lambda x: jnp.zeros_like(x[:, :, :reach]), whole)
    begun = Carry([jnp.zeros_like(features[:, :1])] * passes, [nothing] * reach)
    found = jax.lax.scan(advance, begun, jnp.arange(0, length, chunk))[1]
    return jax.tree.map(_rows, found)


def fed(batch: Batch, passes: int) -> Array:
    """`[B, T, k]`, how much a row of each pass counts.

    Row t guesses token t + 2, and counts as that does if all that it was fed is of the same text:
    in pass j, features back to that of token t - j.
    """
    counted = jnp.pad(batch.weight[:, 1:], ((0, 0), (0, 1)))
    rows = np.arange(counted.shape[1])
    within = [
        (batch.document[:, np.maximum(rows - number, 0)] == batch.document[:, 1:])
        & (rows >= number)[None]
        for number in range(passes)
    ]
    return jnp.stack([counted * one for one in within], axis=-1)


def _keys_and_values(
    params: Params, embedded: Array, features: Array, batch: Batch, *, head: Head, chunk: int
) -> Block:
    """The rows of the first pass, which in a head of one layer hang on its inputs alone.

    Each chunk is read as if it were a text; what else is computed of it is not used, so that the
    compiler leaves it out.
    """
    rows, length, width = embedded.shape
    inputs = (x.reshape(-1, chunk, *x.shape[2:]) for x in (embedded, features, batch.positions))
    block = head.forward(params, *inputs, np.eye(chunk, dtype=bool)).block

    def text(x: Array) -> Array:
        _, heads, _, channels = x.shape
        split = x.reshape(rows, length // chunk, heads, chunk, channels)
        return split.swapaxes(1, 2).reshape(rows, heads, length, channels)

    return jax.tree.map(text, block)


def _mask(document: Array, seen: Sequence[Seen], number: int, new: Array) -> Array:
    """`[B, t, n + t]`, what the rows `new` `[t]` of a pass see of others and of each other."""
    row = jnp.asarray(document)[:, 1:]
    whole = document[:, :-1] == row
    masks = []
    for one in seen:
        back = new[:, None] - one.places[None]
        near = back >= max(number, 1) if one.number == 0 else back == number - one.number
        # A row whose feature is of the text before stands for nothing.
        there = jnp.take(whole, one.places, axis=1, mode="clip") & (one.places >= 0)[None]
        alike = row[:, new, None] == jnp.take(row, one.places, axis=1, mode="clip")[:, None]
        masks.append(near[None] & there[:, None] & alike)
    itself = jnp.broadcast_to(jnp.eye(len(new), dtype=bool), (len(row), len(new), len(new)))
    return jnp.concatenate([*masks, itself], axis=-1)


def _room(blocks: Sequence[Block], count: int) -> tuple[Block, int]:
    """All rows in one block with room for `count` more, and where that begins."""
    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=2), *blocks)
    room = ((0, 0), (0, 0), (0, count), (0, 0))
    return jax.tree.map(lambda x: jnp.pad(x, room), joined), joined.k[0].shape[2]


def _beside(x: Array, y: Array) -> Array:
    """Rows of two blocks, one behind the other."""
    return jnp.concatenate([x, y], axis=2)


def _rows(x: Array) -> Array:
    """Chunks `[n, k, B, t, D]` as `[k, B, n t, D]`."""
    n, passes, rows, chunk, width = x.shape
    return jnp.moveaxis(x, 0, 2).reshape(passes, rows, n * chunk, width)

"""Training-time test: a head reads its own features in training, as it does when it drafts.

In step 0 the head reads the target's features. In each later step it reads, beside every token, the
feature that it predicted in the step before, and attends to its own rows as far back as it has read
its own features: the rows that drafting would give it at that depth. (This is the training-time
test of EAGLE-3. HASS does the same and stops the gradient between the steps; here it flows.)
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jspec.core.cache import Block
from jspec.models.heads import Head
from jspec.models.protocol import Params
from jspec.training.data import Batch


class PastStep(NamedTuple):
    """What a step attends to of another: rows at `places` `[n]` of step `number`, as a block."""

    number: int
    places: Array
    block: Block


class Carry(NamedTuple):
    """What one chunk leaves to the next: of every step the last `features` `[B, 1, D]`, and of all
    steps but the first and the last the rows that are still within reach."""

    features: list[Array]
    blocks: list[Block]


def training_time_test(
    params: Params,
    embedded: Array,
    features: Array,
    batch: Batch,
    *,
    head: Head,
    ttt_steps: int,
    chunk: int,
) -> tuple[Array, Array]:
    """What a head of one layer predicts, step by step: hidden states and features `[k, B, T, D]`.

    Row t holds the embedding of token t + 1 and the feature of token t. In step j of the k, counted
    from 0, it reads in place of that feature what step j - 1 predicted in row t - 1, and attends to
    rows up to t - j of step 0, and to row t - i of step j - i for i < j. Memory grows with the
    number of steps, and not with the square of T.

    Args:
      embedded: `[B, T, D]`, of tokens 1 to T.
      features: `[B, T, D]`, of tokens 0 to T - 1.
      chunk: rows that are computed at a time, a divisor of T.
    """
    length, reach = embedded.shape[1], max(ttt_steps - 2, 0)
    first_step = _keys_and_values(params, embedded, features, batch, head=head, chunk=chunk)

    @jax.checkpoint
    def advance(carry: Carry, first: Array) -> tuple[Carry, tuple[Array, Array]]:
        new = first + jnp.arange(chunk, dtype=jnp.int32)
        inputs = (embedded, features, batch.positions)
        tokens, read, positions = (
            jax.lax.dynamic_slice_in_dim(x, first, chunk, axis=1) for x in inputs
        )
        past, predicted = [PastStep(0, jnp.arange(length, dtype=jnp.int32), first_step)], []
        for number in range(ttt_steps):
            block, start = _with_room([one.block for one in past], chunk)
            mask = _mask(batch.document, past, number, new)
            output = head.forward(params, tokens, read, positions, mask, None, block, start)
            predicted.append((output.hidden, output.features))
            if 0 < number < ttt_steps - 1:
                own = jax.tree.map(lambda x: x[:, :, -chunk:], output.block)
                recent = jax.tree.map(_concatenate_rows, carry.blocks[number - 1], own)
                places = first - reach + jnp.arange(reach + chunk, dtype=jnp.int32)
                past.append(PastStep(number, places, recent))
            read = jnp.concatenate([carry.features[number], output.features[:, :-1]], axis=1)
        carry = Carry(
            [following[:, -1:] for _, following in predicted],
            [jax.tree.map(lambda x: x[:, :, chunk:], one.block) for one in past[1:]],
        )
        hidden, following = zip(*predicted, strict=True)
        return carry, (jnp.stack(hidden), jnp.stack(following))

    empty = jax.tree.map(lambda x: jnp.zeros_like(x[:, :, :reach]), first_step)
    start = Carry([jnp.zeros_like(features[:, :1])] * ttt_steps, [empty] * reach)
    found = jax.lax.scan(advance, start, jnp.arange(0, length, chunk, dtype=jnp.int32))[1]
    return jax.tree.map(_join_chunks, found)


def ttt_weights(batch: Batch, ttt_steps: int) -> Array:
    """`[B, T, k]` the loss weight of each row in each step.

    Row t predicts token t + 2, and has the weight of that token if all that it reads belongs to the
    same document: in step j, features back to that of token t - j.
    """
    weight = jnp.pad(batch.weight[:, 1:], ((0, 0), (0, 1)))
    rows = np.arange(weight.shape[1])
    within = [
        (batch.document[:, np.maximum(rows - number, 0)] == batch.document[:, 1:])
        & (rows >= number)[None]
        for number in range(ttt_steps)
    ]
    return jnp.stack([weight * one.astype(weight.dtype) for one in within], axis=-1)


def _keys_and_values(
    params: Params, embedded: Array, features: Array, batch: Batch, *, head: Head, chunk: int
) -> Block:
    """The rows of step 0, which in a head of one layer depend on its inputs alone.

    Each chunk is read as if it were a text; the compiler drops everything else that is computed.
    """
    rows, length, _ = embedded.shape
    embedded, features, positions = (
        x.reshape(-1, chunk, *x.shape[2:]) for x in (embedded, features, batch.positions)
    )
    mask = jnp.eye(chunk, dtype=bool)
    block = head.forward(params, embedded, features, positions, mask).block

    def joined(x: Array) -> Array:
        _, heads, _, size = x.shape
        split = x.reshape(rows, length // chunk, heads, chunk, size)
        return split.swapaxes(1, 2).reshape(rows, heads, length, size)

    return jax.tree.map(joined, block)


def _mask(document: Array, past: Sequence[PastStep], number: int, new: Array) -> Array:
    """`[B, t, n + t]`: which rows of other steps, and of each other, the rows `new` `[t]` see."""
    row = jnp.asarray(document)[:, 1:]
    within = document[:, :-1] == row
    masks = []
    for one in past:
        back = new[:, None] - one.places[None]
        near = back >= max(number, 1) if one.number == 0 else back == number - one.number
        # A row whose feature belongs to the document before stands for nothing.
        there = jnp.take(within, one.places, axis=1, mode="clip") & (one.places >= 0)[None]
        same = row[:, new, None] == jnp.take(row, one.places, axis=1, mode="clip")[:, None]
        masks.append(near[None] & there[:, None] & same)
    itself = jnp.broadcast_to(jnp.eye(len(new), dtype=bool), (len(row), len(new), len(new)))
    return jnp.concatenate([*masks, itself], axis=-1)


def _with_room(blocks: Sequence[Block], count: int) -> tuple[Block, int]:
    """All rows in one block with room for `count` more, and where that room starts."""
    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=2), *blocks)
    room = ((0, 0), (0, 0), (0, count), (0, 0))
    return jax.tree.map(lambda x: jnp.pad(x, room), joined), joined.k[0].shape[2]


def _concatenate_rows(x: Array, y: Array) -> Array:
    return jnp.concatenate([x, y], axis=2)


def _join_chunks(x: Array) -> Array:
    """Chunks `[n, k, B, t, D]` as `[k, B, n t, D]`."""
    n, steps, rows, chunk, width = x.shape
    return jnp.moveaxis(x, 0, 2).reshape(steps, rows, n * chunk, width)

"""A small language model that grows a static tree with the target's own dice."""

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from jspec.cache import Block, Cache, commit, empty_block
from jspec.candidates import Candidates
from jspec.models.prefill import prefill
from jspec.models.protocol import Model, Params
from jspec.sampling import Sampling, warp
from jspec.tree import Tree


@struct.dataclass
class SmallModelState:
    """The draft's rows.

    Attributes:
      cache: committed rows; one fewer than the target's where `late`.
      late: `[B]` bool: the token before the root is not committed. It was a leaf, and leaves are
        guessed but not run.
      block: the last proposal's rows: first the late token's, then those of the inner nodes.
    """

    cache: Cache
    late: Array
    block: Block


@dataclass(frozen=True)
class SmallModelDrafter:
    """The children of a node are the draft's best tokens under the noise of the target."""

    model: Model
    tree: Tree

    def start(
        self, params: Params, tokens: Array, length: Array, *, capacity: int, chunk: int
    ) -> SmallModelState:
        cache = prefill(
            params, tokens, length - 1, model=self.model, capacity=capacity, chunk=chunk
        )
        rows = 1 + int(self.tree.inner.sum())
        block = empty_block(self.model.config, len(length), rows, cache.k[0].dtype)
        return SmallModelState(cache, jnp.zeros(length.shape, bool), block)

    def propose(
        self,
        params: Params,
        state: SmallModelState,
        tokens: Array,
        length: Array,
        noise: Array,
        sampling: Sampling,
    ) -> tuple[Candidates, SmallModelState]:
        rows, tree = jnp.arange(len(length)), self.tree
        block = self._catch_up(params, state, tokens[rows, length - 2], length - 2)
        guesses = tokens[rows, length - 1][:, None]
        for depth, (new, start, mask) in enumerate(passes(tree)):
            output = self.model.forward(
                params,
                guesses[:, new],
                jnp.broadcast_to((length - 1 + depth)[:, None], (len(length), len(new))),
                _with_late(state.late, mask),
                state.cache,
                block,
                start=start,
            )
            block = output.block
            logits = self.model.logits(params, output.hidden)
            best = _best(logits, noise[:, depth, None], sampling, tree.children(depth))
            below = tree.level(depth + 1)
            parents = np.searchsorted(new, tree.parents[below])
            guesses = jnp.concatenate([guesses, best[:, parents, tree.ranks[below]]], axis=1)
        parent = jnp.broadcast_to(jnp.asarray(tree.parents), guesses.shape)
        candidates = Candidates(guesses, parent, jnp.ones(guesses.shape, bool))
        return candidates, state.replace(block=block)

    def commit(self, state: SmallModelState, path: Array, count: Array) -> SmallModelState:
        inner = self.tree.inner
        last = jnp.take_along_axis(path, jnp.maximum(count, 1)[:, None] - 1, axis=1)[:, 0]
        leaf = ~jnp.asarray(inner)[last]
        # A leaf has no row; it stands at the end of a path, where it is not counted.
        place = jnp.asarray(np.cumsum(inner))[path]
        shifted = jnp.pad(place, ((0, 0), (1, 0)))
        rows = jnp.where(state.late[:, None], shifted[:, :-1], shifted[:, 1:])
        kept = jnp.where(count > 0, state.late + count - leaf, 0)
        return state.replace(
            cache=commit(state.cache, state.block, rows, kept),
            late=jnp.where(count > 0, leaf, state.late),
        )

    def _catch_up(
        self, params: Params, state: SmallModelState, token: Array, position: Array
    ) -> Block:
        """The block with the late tokens' rows in its first place; not computed if none is late."""

        def run() -> Block:
            alone = jnp.ones((1, 1), bool)
            return self.model.forward(
                params, token[:, None], position[:, None], alone, state.cache
            ).block

        def skip() -> Block:
            # No query sees it, but a weight of zero would not hide what is not finite.
            return jax.tree.map(lambda x: jnp.zeros_like(x[:, :, :1]), state.block)

        row = jax.lax.cond(jnp.any(state.late), run, skip)
        return jax.tree.map(lambda x, new: x.at[:, :, :1].set(new), state.block, row)


def passes(tree: Tree) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
    """What a draft runs at each level: the inner nodes `[T]`, their first row, and `[T, N]` which
    of the inner nodes so far each of them sees."""
    run = np.array([], int)
    for depth in range(tree.depth):
        level = tree.level(depth)
        new = level.start + np.flatnonzero(tree.inner[level])
        start, run = 1 + len(run), np.append(run, new)
        yield new, start, tree.mask[np.ix_(new, run)]


def _with_late(late: Array, mask: np.ndarray) -> Array:
    """`[T, N]` and `[B]` -> `[B, T, 1 + N]`: the late token's row, seen where there is one."""
    first = jnp.broadcast_to(late[:, None, None], (len(late), len(mask), 1))
    rest = jnp.broadcast_to(jnp.asarray(mask), (len(late), *mask.shape))
    return jnp.concatenate([first, rest], axis=-1)


def _best(logits: Array, noise: Array, sampling: Sampling, width: int) -> Array:
    """The `width` best tokens at each node under the noise: `[B, N, V]` -> `[B, N, width]`."""
    shared = min(logits.shape[-1], noise.shape[-1])
    scores = warp(logits[..., :shared], sampling) + noise[..., :shared]
    if width == 1:
        return jnp.argmax(scores, axis=-1, keepdims=True).astype(jnp.int32)
    return jax.lax.top_k(scores, width)[1]

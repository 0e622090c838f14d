"""A small language model that grows a tree with the dice of the rule."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from jspec.core.cache import Block, Cache, commit, empty_block
from jspec.core.candidates import Candidates, Dice, Draws, Rule
from jspec.core.sampling import Sampling
from jspec.core.tree import Growth, Tree
from jspec.draft.dynamic_tree import expand
from jspec.draft.protocol import Text
from jspec.draft.static_tree import NO_ROW, Grow, Level, grow
from jspec.models.prefill import prefill
from jspec.models.protocol import Model, Output, Params


@struct.dataclass
class SmallModelState:
    """The draft's rows.

    Attributes:
      cache: committed rows; one fewer than the target's where `late`.
      late: `[B]` bool: the token before the root is not committed. It was a leaf, and leaves are
        guessed but not run.
      block: the last proposal's rows: first the late token's, then those of the nodes that were
        run, which may be others than those of the tree.
      rows: `[B, N]` where among the latter each node of the last tree is, -1 if it was not run.
    """

    cache: Cache
    late: Array
    block: Block
    rows: Array


@dataclass(frozen=True)
class SmallModelDrafter:
    """The children of a node are what the rule draws from the draft's law."""

    model: Model
    tree: Tree | Growth

    def read(self, output: Output) -> None:
        """It needs nothing of the target."""

    @property
    def draws(self) -> Draws:
        return Draws.RULE if isinstance(self.tree, Tree) else Draws.DRAFTER

    def start(
        self,
        params: Params,
        tokens: Array,
        length: Array,
        features: None,
        *,
        capacity: int,
        chunk: int,
    ) -> SmallModelState:
        cache = prefill(
            params, tokens, length - 1, model=self.model, capacity=capacity, chunk=chunk
        )
        batch, rows = len(length), 1 + self.tree.rows
        block = empty_block(self.model.config, batch, rows, cache.k[0].dtype)
        nowhere = jnp.zeros((batch, self.tree.size), jnp.int32)
        return SmallModelState(cache, jnp.zeros(length.shape, bool), block, nowhere)

    def propose(
        self,
        params: Params,
        state: SmallModelState,
        text: Text,
        dice: Dice,
        sampling: Sampling,
        *,
        rule: Rule,
        guess: Grow | None = None,
    ) -> tuple[Candidates, SmallModelState]:
        def run(level: Level, tokens: Array, block: Block) -> tuple[Array, Array, Block]:
            output = self.model.forward(
                params,
                tokens,
                jnp.broadcast_to((text.length - 1 + level.depth)[:, None], tokens.shape),
                _with_late(state.late, level.mask),
                state.cache,
                block,
                start=1 + level.start,
            )
            logits = self.model.logits(params, output.hidden)
            return output.hidden, widened(logits, text.history.written.shape[-1]), output.block

        block = self._catch_up(params, state, _before_root(text), text.length - 2)
        guess = guess or (grow if isinstance(self.tree, Tree) else expand)
        candidates, rows, block = guess(
            block, text, dice, sampling, tree=self.tree, rule=rule, run=run
        )
        return candidates, state.replace(block=block, rows=rows)

    def commit(
        self, state: SmallModelState, path: Array, count: Array, output: Output
    ) -> SmallModelState:
        place = jnp.take_along_axis(state.rows, path, axis=1)
        last = jnp.take_along_axis(place, jnp.maximum(count, 1)[:, None] - 1, axis=1)[:, 0]
        # A leaf that was not run stands at the end of a path, where it is not counted.
        leaf = last == NO_ROW
        shifted = jnp.pad(1 + place, ((0, 0), (1, 0)))
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


def _with_late(late: Array, mask: np.ndarray | Array) -> Array:
    """`[T, N]` or `[B, T, N]` and `[B]` -> `[B, T, 1 + N]`: the late token's row, seen where there
    is one."""
    first = jnp.broadcast_to(late[:, None, None], (len(late), mask.shape[-2], 1))
    rest = jnp.broadcast_to(jnp.asarray(mask), (len(late), *mask.shape[-2:]))
    return jnp.concatenate([first, rest], axis=-1)


def _before_root(text: Text) -> Array:
    """`[B]` the token before the root."""
    return text.tokens[jnp.arange(len(text.length)), text.length - 2]


def widened(logits: Array, vocabulary: int) -> Array:
    """Logits `[..., V]` over the target's vocabulary, of a draft that has fewer tokens or more."""
    missing = max(vocabulary - logits.shape[-1], 0)
    room = [(0, 0)] * (logits.ndim - 1) + [(0, missing)]
    return jnp.pad(logits, room, constant_values=-jnp.inf)[..., :vocabulary]

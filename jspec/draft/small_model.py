"""A small language model as the draft: it runs the inner nodes of a tree, level by level."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from jspec.core.cache import Block, Cache, commit, empty_block
from jspec.core.candidates import CHOSEN, SAMPLED, Candidates, Randomness, Rule
from jspec.core.sampling import SamplingParams
from jspec.core.tree import DynamicTree, Tree
from jspec.draft.dynamic_tree import draft_dynamic_tree
from jspec.draft.protocol import DraftContext
from jspec.draft.static_tree import NO_ROW, DraftTree, TreeLevel, draft_static_tree
from jspec.models.prefill import prefill
from jspec.models.protocol import Model, Output, Params


@struct.dataclass
class SmallModelState:
    """The draft's rows.

    Attributes:
      cache: committed rows; one fewer than the target's where `pending`.
      pending: `[B]` bool: the token before the root is not committed. It was a leaf, and leaves are
        drafted but not run.
      block: the last proposal's rows: first the pending token's, then those of the nodes that were
        run, which may differ from those of the tree.
      rows: `[B, N]` where among the latter each node of the last tree is, -1 if it was not run.
    """

    cache: Cache
    pending: Array
    block: Block
    rows: Array


@dataclass(frozen=True)
class SmallModelDrafter:
    """Drafts with a language model: the children of a node are what the rule draws from its logits.

    >>> SmallModelDrafter(draft.model, Tree.chain(5))
    """

    model: Model
    tree: Tree | DynamicTree

    @property
    def source(self) -> str:
        """As `Drafter.source`."""
        return SAMPLED if isinstance(self.tree, Tree) else CHOSEN

    @property
    def undrafted_levels(self) -> int:
        """As `Drafter.undrafted_levels`."""
        return 0

    def read_hidden_states(self, output: Output) -> None:
        """It needs nothing of the target."""

    def start(
        self,
        params: Params,
        tokens: Array,
        length: Array,
        hidden_states: Array | None,
        *,
        capacity: int,
        chunk: int,
    ) -> SmallModelState:
        """As `Drafter.start`."""
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
        context: DraftContext,
        noise: Randomness,
        sampling: SamplingParams,
        *,
        rule: Rule,
        draft_tree: DraftTree | None = None,
    ) -> tuple[Candidates, SmallModelState]:
        """As `Drafter.propose`."""

        def run(level: TreeLevel, tokens: Array, block: Block) -> tuple[Array, Array, Block]:
            output = self.model.forward(
                params,
                tokens,
                jnp.broadcast_to((context.length - 1 + level.depth)[:, None], tokens.shape),
                _with_pending(state.pending, level.mask),
                state.cache,
                block,
                start=1 + level.start,
            )
            logits = self.model.logits(params, output.hidden)
            return (
                output.hidden,
                to_vocab_size(logits, context.counts.generated.shape[-1]),
                output.block,
            )

        block = self._run_pending(params, state, context.from_end(2), context.length - 2)
        if draft_tree is None:
            draft_tree = draft_static_tree if isinstance(self.tree, Tree) else draft_dynamic_tree
        candidates, rows, block = draft_tree(
            block, context, noise, sampling, tree=self.tree, rule=rule, run=run
        )
        return candidates, replace(state, block=block, rows=rows)

    def commit(
        self, state: SmallModelState, path: Array, count: Array, output: Output
    ) -> SmallModelState:
        """As `Drafter.commit`."""
        place = jnp.take_along_axis(state.rows, path, axis=1)
        last = jnp.take_along_axis(place, jnp.maximum(count, 1)[:, None] - 1, axis=1)[:, 0]
        # A leaf that was not run is at the end of a path, where it is not counted.
        leaf = last == NO_ROW
        shifted = jnp.pad(1 + place, ((0, 0), (1, 0)))
        rows = jnp.where(state.pending[:, None], shifted[:, :-1], shifted[:, 1:])
        pending, last = (x.astype(jnp.int32) for x in (state.pending, leaf))
        committed = jnp.where(count > 0, pending + count - last, 0)
        return replace(
            state,
            cache=commit(state.cache, state.block, rows, committed),
            pending=jnp.where(count > 0, leaf, state.pending),
        )

    def _run_pending(
        self, params: Params, state: SmallModelState, token: Array, position: Array
    ) -> Block:
        """The block with the pending tokens' rows in its first place, if any is pending."""

        def run() -> Block:
            alone = jnp.ones((1, 1), bool)
            return self.model.forward(
                params, token[:, None], position[:, None], alone, state.cache
            ).block

        def skip() -> Block:
            # No query sees it, but a weight of zero would not hide what is not finite.
            return jax.tree.map(lambda x: jnp.zeros_like(x[:, :, :1]), state.block)

        row = jax.lax.cond(jnp.any(state.pending), run, skip)
        return jax.tree.map(lambda x, new: x.at[:, :, :1].set(new), state.block, row)


def _with_pending(pending: Array, mask: np.ndarray | Array) -> Array:
    """`[T, N]` or `[B, T, N]` and `[B]` -> `[B, T, 1 + N]`: the pending token's row comes first,
    and is seen where there is one."""
    first = jnp.broadcast_to(pending[:, None, None], (len(pending), mask.shape[-2], 1))
    rest = jnp.broadcast_to(jnp.asarray(mask), (len(pending), *mask.shape[-2:]))
    return jnp.concatenate([first, rest], axis=-1)


def to_vocab_size(logits: Array, vocab_size: int) -> Array:
    """Logits `[..., V]` over the target's vocabulary, of a draft that has fewer tokens or more."""
    missing = max(vocab_size - logits.shape[-1], 0)
    room = [(0, 0)] * (logits.ndim - 1) + [(0, missing)]
    return jnp.pad(logits, room, constant_values=-jnp.inf)[..., :vocab_size]

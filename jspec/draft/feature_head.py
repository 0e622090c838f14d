"""A head as the draft: it reads the target's hidden states, and drafts along a tree (EAGLE)."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jspec.core.cache import Block, Cache, commit, empty_block, empty_cache
from jspec.core.candidates import CHOSEN, SAMPLED, Candidates, Randomness, Rule
from jspec.core.sampling import SamplingParams
from jspec.core.tree import DynamicTree, Tree
from jspec.draft.dynamic_tree import draft_dynamic_tree
from jspec.draft.protocol import DraftContext
from jspec.draft.static_tree import DraftTree, TreeLevel, draft_static_tree
from jspec.models.heads import Head, HeadOutput, HeadParams
from jspec.models.prefill import fill
from jspec.models.protocol import EmbeddingModel, Output


@struct.dataclass
class FeatureState:
    """The head's rows, one for every token but the first: the token's embedding beside the feature
    at the token before it.

    Attributes:
      cache: committed rows, all of them made of the target's own features.
      num_pending: `[B]` how many of the last tokens, the root among them, have no row yet.
      hidden_states: `[B, A, E]` what was read of the target, at the tokens before those.
    """

    cache: Cache
    num_pending: Array
    hidden_states: Array


class _Carry(NamedTuple):
    """The rows of the I nodes that are run, but for the root's, and the features `[B, I, D]` that
    the head predicts there."""

    block: Block
    features: Array


@dataclass(frozen=True)
class FeatureDrafter:
    """Drafts from the target's feature at the root, and below from its own predicted features.

    The target of `generate` returns the layers that the head reads.

    >>> model = with_hidden_states(target.model, head.head.layers)
    >>> FeatureDrafter(head.head, model, Tree.chain(5))
    """

    head: Head
    target: EmbeddingModel
    tree: Tree | DynamicTree

    @property
    def source(self) -> str:
        """As `Drafter.source`."""
        return SAMPLED if isinstance(self.tree, Tree) else CHOSEN

    @property
    def undrafted_levels(self) -> int:
        """As `Drafter.undrafted_levels`."""
        return 0

    def read_hidden_states(self, output: Output) -> Array:
        """As `Drafter.read_hidden_states`."""
        return self.head.read_hidden_states(output)

    def start(
        self,
        params: HeadParams,
        tokens: Array,
        length: Array,
        hidden_states: Array | None,
        *,
        capacity: int,
        chunk: int,
    ) -> FeatureState:
        """As `Drafter.start`."""
        if not isinstance(params, HeadParams):
            raise ValueError(
                f"params={type(params).__name__}: a head drafts with its target's parameters "
                "beside its own, so give HeadParams, as params_for(target.params) makes them"
            )
        assert hidden_states is not None
        batch = len(length)
        # A row's token comes one place after its feature.
        following = jnp.roll(tokens, -1, axis=1)
        causal = jnp.tril(jnp.ones((chunk, chunk), bool))

        def run(first: Array, cache: Cache, kept: tuple[()]) -> tuple[Block, tuple[()]]:
            piece, states = (
                jax.lax.dynamic_slice_in_dim(x, first, chunk, axis=1)
                for x in (following, hidden_states)
            )
            places = jnp.broadcast_to(first + jnp.arange(chunk, dtype=jnp.int32), piece.shape)
            features = self.head.fuse(params.head, states)
            return self._run(params, piece, features, places, causal, cache).block, kept

        cache = empty_cache(self.head.config, batch, capacity, hidden_states.dtype)
        cache, _ = fill(cache, (), jnp.maximum(length - 2, 0), chunk=chunk, run=run)
        # A root that is the first token has no feature before it: zeros stand in for it.
        rows = jnp.arange(batch, dtype=jnp.int32)
        before = hidden_states[rows, jnp.maximum(length - 2, 0)]
        before = jnp.where((length > 1)[:, None], before, 0)
        pending = jnp.zeros((batch, self.tree.path_length, before.shape[-1]), before.dtype)
        return FeatureState(cache, jnp.ones_like(length), pending.at[:, 0].set(before))

    def propose(
        self,
        params: HeadParams,
        state: FeatureState,
        context: DraftContext,
        noise: Randomness,
        sampling: SamplingParams,
        *,
        rule: Rule,
        draft_tree: DraftTree | None = None,
    ) -> tuple[Candidates, FeatureState]:
        """As `Drafter.propose`."""
        batch, inner = len(context.length), self.tree.rows
        root = self._run_pending(params, state, context)
        every = jnp.arange(self.tree.path_length, dtype=jnp.int32)
        every = jnp.broadcast_to(every, state.hidden_states.shape[:2])
        # The first token has no row: there is no feature before it.
        rows = jnp.where(context.length > 1, state.num_pending, 0)
        state = replace(state, cache=commit(state.cache, root.block, every, rows))

        def last(x: Array) -> Array:
            each = jnp.arange(batch, dtype=jnp.int32)
            return x[each, jnp.maximum(state.num_pending - 1, 0)][:, None]

        def run(level: TreeLevel, tokens: Array, carry: _Carry) -> tuple[Array, Array, _Carry]:
            if not level.depth:
                hidden = last(root.hidden)
                return hidden, self.head.logits(params, hidden, target=self.target), carry
            parent = jnp.broadcast_to(jnp.asarray(level.parent), tokens.shape)
            ran = self._run(
                params,
                tokens,
                jnp.take_along_axis(carry.features, parent[..., None], axis=1),
                jnp.broadcast_to((context.length - 2 + level.depth)[:, None], tokens.shape),
                jnp.asarray(level.mask[..., 1:]),  # the root's row is committed
                state.cache,
                carry.block,
                start=level.start - 1,
            )
            features = jax.lax.dynamic_update_slice_in_dim(
                carry.features, ran.features, level.start, axis=1
            )
            logits = self.head.logits(params, ran.hidden, target=self.target)
            return ran.hidden, logits, _Carry(ran.block, features)

        features = last(root.features)
        carry = _Carry(
            empty_block(self.head.config, batch, max(inner - 1, 1), root.block.k[0].dtype),
            jnp.pad(features, ((0, 0), (0, inner - 1), (0, 0))),
        )
        if draft_tree is None:
            draft_tree = draft_static_tree if isinstance(self.tree, Tree) else draft_dynamic_tree
        candidates, *_ = draft_tree(
            carry, context, noise, sampling, tree=self.tree, rule=rule, run=run
        )
        return candidates, state

    def commit(
        self, state: FeatureState, path: Array, count: Array, output: Output
    ) -> FeatureState:
        """As `Drafter.commit`."""
        states = self.read_hidden_states(output)
        states = jnp.take_along_axis(states, path[:, :, None], axis=1)
        states = states.astype(state.hidden_states.dtype)
        return replace(state, num_pending=count, hidden_states=states)

    def _run_pending(
        self, params: HeadParams, state: FeatureState, context: DraftContext
    ) -> HeadOutput:
        """The rows of the pending tokens, in order; what follows the last of them means nothing."""
        length = self.tree.path_length
        ahead = jnp.arange(length, dtype=jnp.int32)[None]
        place = (context.length - state.num_pending)[:, None] + ahead
        tokens = jnp.take_along_axis(context.tokens, place, axis=1, mode="clip")
        causal = jnp.tril(jnp.ones((length, length), bool))
        positions = jnp.maximum(place - 1, 0)
        features = self.head.fuse(params.head, state.hidden_states)
        return self._run(params, tokens, features, positions, causal, state.cache)

    def _run(
        self,
        params: HeadParams,
        tokens: Array,
        features: Array,
        positions: Array,
        mask: Array,
        cache: Cache,
        block: Block | None = None,
        start: int = 0,
    ) -> HeadOutput:
        embedded = self.head.embed(params, tokens, target=self.target)
        return self.head.forward(
            params.head, embedded, features, positions, mask, cache, block, start
        )

"""A head that reads the target's features, and grows a tree with the dice of the rule."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jspec.core.cache import Block, Cache, commit, empty_block, empty_cache
from jspec.core.candidates import Candidates, Dice, Draws, Rule
from jspec.core.sampling import Sampling
from jspec.core.tree import Growth, Tree
from jspec.draft.dynamic_tree import expand
from jspec.draft.protocol import Text
from jspec.draft.static_tree import Grow, Level, grow
from jspec.models.heads import Guess, Head, HeadParams
from jspec.models.prefill import fill
from jspec.models.protocol import EmbeddingModel, Output


@struct.dataclass
class FeatureState:
    """The head's rows, one for every token but the first: its embedding beside the feature at the
    token before it.

    Attributes:
      cache: committed rows, all of them made of the target's own features.
      waiting: `[B]` how many of the last tokens, the root among them, have no row yet.
      features: `[B, A, E]` what was read of the target, at the tokens before those.
    """

    cache: Cache
    waiting: Array
    features: Array


class _Carry(NamedTuple):
    """Of the I nodes that are run their rows, but for the root's, and the features `[B, I, D]` that
    the head guesses there."""

    block: Block
    features: Array


@dataclass(frozen=True)
class FeatureDrafter:
    """Guesses from the target's feature at the root, and below from features that are guesses.

    The target of `generate` is to show the layers that the head reads: `observed(target, layers)`.
    """

    head: Head
    target: EmbeddingModel
    tree: Tree | Growth

    def read(self, output: Output) -> Array:
        return self.head.read(output)

    @property
    def draws(self) -> Draws:
        return Draws.RULE if isinstance(self.tree, Tree) else Draws.DRAFTER

    def start(
        self,
        params: HeadParams,
        tokens: Array,
        length: Array,
        features: Array,
        *,
        capacity: int,
        chunk: int,
    ) -> FeatureState:
        if not isinstance(params, HeadParams):
            raise ValueError(
                f"params={type(params).__name__}: a head guesses with its target's parameters "
                "beside its own, so give HeadParams, as params_for(target.params) makes them"
            )
        batch = len(length)
        # A row's token stands one place behind its feature.
        following = jnp.roll(tokens, -1, axis=1)
        causal = jnp.tril(jnp.ones((chunk, chunk), bool))

        def run(first: Array, cache: Cache, kept: tuple[()]) -> tuple[Block, tuple[()]]:
            piece, seen = (
                jax.lax.dynamic_slice_in_dim(x, first, chunk, axis=1) for x in (following, features)
            )
            places = jnp.broadcast_to(first + jnp.arange(chunk), piece.shape)
            seen = self.head.fuse(params.head, seen)
            return self._run(params, piece, seen, places, causal, cache).block, kept

        cache = empty_cache(self.head.config, batch, capacity, features.dtype)
        cache, _ = fill(cache, (), jnp.maximum(length - 2, 0), chunk=chunk, run=run)
        # A root that is the first token has no feature before it; nothing stands for that.
        before = features[jnp.arange(batch), jnp.maximum(length - 2, 0)]
        before = jnp.where((length > 1)[:, None], before, 0)
        waiting = jnp.zeros((batch, self.tree.path_length, before.shape[-1]), before.dtype)
        return FeatureState(cache, jnp.ones_like(length), waiting.at[:, 0].set(before))

    def propose(
        self,
        params: HeadParams,
        state: FeatureState,
        text: Text,
        dice: Dice,
        sampling: Sampling,
        *,
        rule: Rule,
        guess: Grow | None = None,
    ) -> tuple[Candidates, FeatureState]:
        batch, inner = len(text.length), self.tree.rows
        root = self._catch_up(params, state, text)
        every = jnp.broadcast_to(jnp.arange(self.tree.path_length), state.features.shape[:2])
        # The first token has no row: there is no feature before it.
        rows = jnp.where(text.length > 1, state.waiting, 0)
        state = state.replace(cache=commit(state.cache, root.block, every, rows))

        def last(x: Array) -> Array:
            return x[jnp.arange(batch), jnp.maximum(state.waiting - 1, 0)][:, None]

        def run(level: Level, tokens: Array, carry: _Carry) -> tuple[Array, Array, _Carry]:
            if not level.depth:
                hidden = last(root.hidden)
                return hidden, self.head.logits(params, hidden, target=self.target), carry
            parent = jnp.broadcast_to(jnp.asarray(level.parent), tokens.shape)
            ran = self._run(
                params,
                tokens,
                jnp.take_along_axis(carry.features, parent[..., None], axis=1),
                jnp.broadcast_to((text.length - 2 + level.depth)[:, None], tokens.shape),
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
        guess = guess or (grow if isinstance(self.tree, Tree) else expand)
        candidates, *_ = guess(carry, text, dice, sampling, tree=self.tree, rule=rule, run=run)
        return candidates, state

    def commit(
        self, state: FeatureState, path: Array, count: Array, output: Output
    ) -> FeatureState:
        features = jnp.take_along_axis(self.read(output), path[:, :, None], axis=1)
        return state.replace(waiting=count, features=features.astype(state.features.dtype))

    def _catch_up(self, params: HeadParams, state: FeatureState, text: Text) -> Guess:
        """The rows of the tokens that wait, in order; behind the last of them there is no more."""
        length = self.tree.path_length
        place = (text.length - state.waiting)[:, None] + jnp.arange(length)[None]
        tokens = jnp.take_along_axis(text.tokens, place, axis=1, mode="clip")
        causal = jnp.tril(jnp.ones((length, length), bool))
        positions = jnp.maximum(place - 1, 0)
        features = self.head.fuse(params.head, state.features)
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
    ) -> Guess:
        embedded = self.head.embed(params, tokens, target=self.target)
        return self.head.forward(
            params.head, embedded, features, positions, mask, cache, block, start
        )

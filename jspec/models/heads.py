"""Heads that read the target's features: one layer that guesses the next token and feature.

A head is given a feature of a token and the embedding of the token that follows. For EAGLE and
FSPAD both are the target's, the feature is what the target's last norm gives, and the target's own
head makes logits of what they return.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jspec.config import ModelConfig
from jspec.core.cache import Block, Cache
from jspec.models.layers import NORMS, Attention, GatedFeedForward, Linear, Sight, turns
from jspec.models.protocol import EmbeddingModel, LinenPart, Output, Params
from jspec.parallel.sharding import constrain

# By whether a head has feature sampling, and partial alignment.
KINDS = {
    (False, False): "eagle",
    (True, True): "fspad",
    (True, False): "sampling_alone",
    (False, True): "alignment_alone",
}


class Guess(NamedTuple):
    """What a head returns: `hidden` `[B, T, D]`, of which logits are made, the next `features`
    `[B, T, D]`, and the `block` that it filled."""

    hidden: Array
    features: Array
    block: Block


class HeadParams(NamedTuple):
    """What a head guesses with: its own parameters, and the target's, whose embedding and head it
    may use.

    `d2t` `[draft vocabulary]` int32 is a table and no parameter, so that nothing trains or rounds
    it: what is added to each token of a head that has fewer than the target, to have the target's.
    """

    head: Params
    target: Params
    d2t: Array | None = None

    @property
    def tokens(self) -> Array | None:
        """The target's tokens that the head has; None for all."""
        return None if self.d2t is None else jnp.arange(len(self.d2t)) + self.d2t


@dataclass(frozen=True)
class Head(LinenPart):
    """A head as pure functions of its parameters; hashable, as a model is."""

    @property
    def kind(self) -> str:
        """What recipes call it."""
        return KINDS[self.module.sampling, self.module.partial]

    @property
    def layers(self) -> tuple[int, ...]:
        """Those of the target whose inputs it reads."""
        return ()

    @property
    def target_width(self) -> int:
        """Of what those layers read."""
        return self.config.width

    @property
    def draft_vocabulary(self) -> int:
        """How many tokens it may guess."""
        return self.config.vocabulary

    def read(self, output: Output) -> Array:
        """What it takes of the target's pass: `[B, T, E]`."""
        return output.hidden

    def fuse(self, params: Params, seen: Array) -> Array:
        """What was read as features: `[B, T, E]` -> `[B, T, D]`."""
        return seen

    def embed(self, params: HeadParams, tokens: Array, *, target: EmbeddingModel) -> Array:
        """What stands beside the features: `[B, T]` -> `[B, T, D]`."""
        return target.embed(params.target, tokens)

    def logits(self, params: HeadParams, hidden: Array, *, target: EmbeddingModel) -> Array:
        """Logits over the target's vocabulary: `[..., D]` -> `[..., V]` float32; `-inf` for tokens
        that the head has not."""
        return self.own_logits(params, hidden, target=target)

    def own_logits(self, params: HeadParams, hidden: Array, *, target: EmbeddingModel) -> Array:
        """Logits over the head's own tokens, which are the target's if there is no `d2t`."""
        return target.logits(params.target, hidden)

    def forward(
        self,
        params: Params,
        embedded: Array,
        features: Array,
        positions: Array,
        mask: Array,
        cache: Cache | None = None,
        block: Block | None = None,
        start: int = 0,
    ) -> Guess:
        """Runs new rows, as `Model.forward` does, over a cache that it does not write.

        Args:
          embedded: `[B, T, D]` embeddings of tokens.
          features: `[B, T, D]` those at the tokens before them: the target's, fused, or guesses.
          positions: `[B, T]`, of the tokens before.
        """
        return self.module.apply(
            {"params": params}, embedded, features, positions, mask, cache, block, start
        )

    def _variables(self, key: Array) -> Params:
        one = jnp.zeros((1, 1, self.config.width))
        place, mask = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)
        return self.module.init(key, one, one, place, mask)["params"]


def eagle(config: ModelConfig) -> Head:
    """EAGLE's head (arXiv 2401.15077): the two inputs are fused, and one layer reads them."""
    return Head(FeatureLayer(config), config)


def fspad(config: ModelConfig) -> Head:
    """FSPAD's (arXiv 2408.15562): feature sampling and partial alignment."""
    return Head(FeatureLayer(config, sampling=True, partial=True), config)


def sampling_alone(config: ModelConfig) -> Head:
    """FSPAD's ablation without partial alignment."""
    return Head(FeatureLayer(config, sampling=True), config)


def alignment_alone(config: ModelConfig) -> Head:
    """FSPAD's ablation without feature sampling."""
    return Head(FeatureLayer(config, partial=True), config)


class FeatureLayer(nn.Module):
    """A Transformer layer that begins with no norm, over an embedding fused with a feature.

    Attributes:
      config: of a Llama of one layer; its vocabulary and context are the target's.
      sampling: whether the embedding alone chooses, by gates in the feed-forward's width, what else
        of the fused state goes in (FSPAD's feature sampling).
      partial: whether the output is doubled, so that its first half serves the target's head and
        only the second is held to the target's features (FSPAD's partial alignment).
      bias: whether what fuses the two inputs has one; some published heads have none.
    """

    config: ModelConfig
    sampling: bool = False
    partial: bool = False
    bias: bool = True

    @nn.compact
    def __call__(
        self,
        embedded: Array,
        features: Array,
        positions: Array,
        mask: Array,
        cache: Cache | None = None,
        block: Block | None = None,
        start: int = 0,
    ) -> Guess:
        c = self.config
        both = jnp.concatenate([embedded, features.astype(embedded.dtype)], axis=-1)
        x = Linear(c.width, ("width", None), use_bias=self.bias, name="fuse")(both)
        if self.sampling:
            state = NORMS[c.norm](c.epsilon, name="sampling_norm")(x)
            x = x + GatedFeedForward(c, name="sampling")(embedded, state)
        sight = Sight(turns(positions, c.channels, c.rope_theta, c.rope_scaling), mask)
        y, (key, value) = Attention(c, 0, name="attention")(x, sight, cache, block, start)
        x = constrain(x + y, "batch", None, None)
        inner = NORMS[c.norm](c.epsilon, name="feedforward_norm")(x)
        out = 2 * c.width if self.partial else c.width
        y = GatedFeedForward(c, out, name="feedforward")(inner)
        hidden, following = jnp.split(y, 2, axis=-1) if self.partial else (y, y)
        return Guess(x + hidden, x + following, Block((key,), (value,)))

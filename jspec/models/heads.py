"""Heads that read the target's hidden states: one layer that predicts the next token and feature.

A head takes the feature of a token and the embedding of the token that follows. A feature is a
hidden state that the head reads. For EAGLE and FSPAD it is the output of the target's last norm;
the embedding is the target's, and so is the output matrix.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jspec.config import ModelConfig
from jspec.core.cache import Block, Cache
from jspec.models.layers import NORMS, Attention, AttentionContext, GatedMLP, Linear, rotary_angles
from jspec.models.protocol import EmbeddingModel, LinenPart, Output, Params
from jspec.parallel.sharding import constrain

# By whether a head has feature sampling, and partial alignment.
KINDS = {
    (False, False): "eagle",
    (True, True): "fspad",
    (True, False): "sampling_alone",
    (False, True): "alignment_alone",
}


class HeadOutput(NamedTuple):
    """A head's forward pass.

    Attributes:
      hidden: `[B, T, D]`, of which `Head.logits` makes logits.
      features: `[B, T, D]` the predicted next features.
      block: the rows that the pass filled.
    """

    hidden: Array
    features: Array
    block: Block


class HeadParams(NamedTuple):
    """What a head drafts with.

    >>> head.params_for(target.params).tokens is None
    True

    Attributes:
      head: its own parameters.
      target: the target's, whose embedding and output matrix it may use.
      d2t: `[draft vocabulary]` int32 offset from each draft token to the target's token; None for a
        head that has all of the target's tokens. It is not in `head`, so that nothing trains it.
    """

    head: Params
    target: Params
    d2t: Array | None = None

    @property
    def tokens(self) -> Array | None:
        """`[draft vocabulary]` the target's tokens that the head has; None for all."""
        if self.d2t is None:
            return None
        return jnp.arange(len(self.d2t), dtype=jnp.int32) + self.d2t


@dataclass(frozen=True)
class Head(LinenPart):
    """A head as pure functions of its parameters; hashable, as a model is.

    `eagle`, `fspad`, `sampling_alone`, `alignment_alone` and `eagle3` make one.
    """

    # A `FeatureLayer` here, an `Eagle3Layer` in `Eagle3`.
    module: Any
    config: ModelConfig

    @property
    def kind(self) -> str:
        """Its name in recipes."""
        return KINDS[self.module.sampling, self.module.partial]

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers of the target whose inputs it reads; none if it reads `Output.hidden`."""
        return ()

    @property
    def target_hidden_size(self) -> int:
        """The size of the hidden states that it reads."""
        return self.config.hidden_size

    @property
    def draft_vocab_size(self) -> int:
        """How many tokens it can draft."""
        return self.config.vocab_size

    def read_hidden_states(self, output: Output) -> Array:
        """What it reads of the target's pass: `[B, T, E]`."""
        return output.hidden

    def fuse(self, params: Params, hidden_states: Array) -> Array:  # noqa: ARG002
        """Features out of what was read: `[B, T, E]` -> `[B, T, D]`."""
        return hidden_states

    def embed(self, params: HeadParams, tokens: Array, *, target: EmbeddingModel) -> Array:
        """Embeddings of the tokens that follow the features: `[B, T]` -> `[B, T, D]`."""
        return target.embed(params.target, tokens)

    def logits(self, params: HeadParams, hidden: Array, *, target: EmbeddingModel) -> Array:
        """Logits over the target's vocabulary: `[..., D]` -> `[..., V]` float32.

        They are `-inf` for tokens that the head does not have.
        """
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
    ) -> HeadOutput:
        """Runs new rows, as `Model.forward` does, over a cache that it does not write.

        Args:
          embedded: `[B, T, D]` embeddings of tokens.
          features: `[B, T, D]` those of the tokens before: the target's, fused, or predicted.
          positions: `[B, T]`, of the tokens before.
        """
        return self._apply(params, embedded, features, positions, mask, cache, block, start)

    def _variables(self, key: Array) -> Params:
        one = jnp.zeros((1, 1, self.config.hidden_size), jnp.float32)
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
    """A Transformer layer without its first norm, over an embedding fused with a feature.

    Attributes:
      config: of a Llama of one layer with the target's vocabulary and number of positions.
      sampling: whether the embedding alone gates, in the width of the feed-forward network, what
        else of the fused state is added (FSPAD's feature sampling).
      partial: whether the output is doubled: its first half goes to the output matrix, and only the
        second is trained to be the target's feature (FSPAD's partial alignment).
      bias: whether the matrix that fuses the two inputs has one; some published heads have none.
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
    ) -> HeadOutput:
        """`Head.forward`."""
        c = self.config
        both = jnp.concatenate([embedded, features.astype(embedded.dtype)], axis=-1)
        x = Linear(c.hidden_size, ("hidden_size", None), use_bias=self.bias, name="fuse")(both)
        if self.sampling:
            state = NORMS[c.norm](c.norm_eps, name="sampling_norm")(x)
            x = x + GatedMLP(c, name="sampling")(embedded, state)
        context = AttentionContext(
            rotary_angles(positions, c.head_dim, c.rope_theta, c.rope_scaling), mask
        )
        y, (key, value) = Attention(c, 0, name="attention")(x, context, cache, block, start)
        x = constrain(x + y, "batch", None, None)
        inner = NORMS[c.norm](c.norm_eps, name="feedforward_norm")(x)
        out_size = 2 * c.hidden_size if self.partial else c.hidden_size
        y = GatedMLP(c, out_size, name="feedforward")(inner)
        hidden, following = jnp.split(y, 2, axis=-1) if self.partial else (y, y)
        return HeadOutput(x + hidden, x + following, Block((key,), (value,)))

"""EAGLE-3's head (arXiv 2503.01840): it reads several layers of the target, and has a norm, an
output matrix and, if it likes, a vocabulary and an embedding of its own.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jspec.config import ModelConfig
from jspec.core.cache import Block, Cache
from jspec.models.heads import Guess, Head, HeadParams
from jspec.models.layers import NORMS, Attention, GatedFeedForward, Linear, Sight, turns
from jspec.models.protocol import EmbeddingModel, Output, Params
from jspec.parallel.sharding import constrain, named, rows_to_look_up


def eagle3(
    config: ModelConfig,
    *,
    layers: tuple[int, ...],
    draft_vocabulary: int | None = None,
    target_width: int | None = None,
    own_embedding: bool = False,
    norm_before_residual: bool = False,
    norm_output: bool = False,
    fc_norm: bool = False,
    norm_before_fc: bool = False,
) -> "Eagle3":
    """The head that `config`, of a Llama of one layer with the target's vocabulary, describes.

    Args:
      layers: of the target, whose inputs it reads, in this order; `usual_layers` has the custom.
      draft_vocabulary: how many tokens it may guess; None for all.
      target_width: of what those layers read; None for the head's own.
      own_embedding: or else the target's.
      norm_before_residual: whether the norm of the features stands before the residual.
      norm_output: whether the next features are the output after its norm, and not before.
      fc_norm: whether what each layer reads has a norm before all are fused.
      norm_before_fc: whether one norm is of all of them.

    Raises `ValueError` for what does not go together.
    """
    guessed = config.vocabulary if draft_vocabulary is None else draft_vocabulary
    width = config.width if target_width is None else target_width
    if not layers:
        raise ValueError("layers=(): a head reads at least one layer of the target")
    if not 1 <= guessed <= config.vocabulary:
        raise ValueError(
            f"draft_vocabulary={guessed}: must lie in 1..{config.vocabulary}, the target's"
        )
    if width != config.width and not own_embedding:
        raise ValueError(
            f"target_width={width}: without own_embedding the head reads the target's, and is as "
            f"wide, and its width is {config.width}"
        )
    if config.tied:
        raise ValueError(
            "config.tied=True: the head has an output matrix of its own: give tied=False"
        )
    if fc_norm and norm_before_fc:
        raise ValueError("fc_norm and norm_before_fc exclude each other: give one of them")
    module = Eagle3Layer(
        config,
        layers=tuple(layers),
        draft_vocabulary=guessed,
        target_width=width,
        own_embedding=own_embedding,
        norm_before_residual=norm_before_residual,
        norm_output=norm_output,
        fc_norm=fc_norm,
        norm_before_fc=norm_before_fc,
    )
    return Eagle3(module, config)


def usual_layers(count: int) -> tuple[int, int, int]:
    """Those that EAGLE-3 reads of a target of `count` layers: a low, a middle and a high one.

    Raises `ValueError` where that is not three.
    """
    if count < 7:
        raise ValueError(f"a target of {count} layers has no usual three to read: name them")
    return 2, count // 2, count - 3


def check_vocabulary(d2t: np.ndarray, vocabulary: int) -> None:
    """Raises `ValueError` unless offsets `d2t` `[draft vocabulary]` give each token of a head
    another one of the target's `vocabulary`. Looks at the values, so not under jit."""
    d2t = np.asarray(d2t)
    if d2t.ndim != 1 or not np.issubdtype(d2t.dtype, np.integer):
        raise ValueError(
            f"d2t is {d2t.dtype} {list(d2t.shape)}: whole numbers [draft vocabulary] are asked for"
        )
    tokens = np.arange(len(d2t)) + d2t.astype(np.int64)
    wrong = np.flatnonzero((tokens < 0) | (tokens >= vocabulary))
    if len(wrong):
        ids = d2t.min() >= 0 and d2t.max() < vocabulary and len(np.unique(d2t)) == len(d2t)
        cause = "; it seems to hold the tokens themselves, not token - index" if ids else ""
        raise ValueError(
            f"d2t makes token {tokens[wrong[0]]} of draft token {wrong[0]}: the target's tokens "
            f"lie in 0..{vocabulary - 1}{cause}"
        )
    found, count = np.unique(tokens, return_counts=True)
    if len(found) < len(tokens):
        raise ValueError(
            f"d2t makes token {found[count.argmax()]} of {count.max()} draft tokens: each must "
            "have one of its own"
        )


@dataclass(frozen=True)
class Eagle3(Head):
    """EAGLE-3's head; its module has what else there is to know of it."""

    @property
    def kind(self) -> str:
        return "eagle3"

    @property
    def layers(self) -> tuple[int, ...]:
        return self.module.layers

    @property
    def target_width(self) -> int:
        return self.module.target_width

    @property
    def draft_vocabulary(self) -> int:
        return self.module.draft_vocabulary

    def read(self, output: Output) -> Array:
        wanted = [self.module.target_width] * len(self.layers)
        widths = [x.shape[-1] for x in output.features]
        if widths != wanted:
            raise ValueError(
                f"the target shows features of widths {widths}, and this head reads {wanted}: "
                f"give observed(target, {self.layers})"
            )
        return jnp.concatenate(output.features, axis=-1)

    def fuse(self, params: Params, seen: Array) -> Array:
        return self.module.apply({"params": params}, seen, method="fuse")

    def embed(self, params: HeadParams, tokens: Array, *, target: EmbeddingModel) -> Array:
        if not self.module.own_embedding:
            return super().embed(params, tokens, target=target)
        return self.module.apply({"params": params.head}, tokens, method="look_up")

    def logits(self, params: HeadParams, hidden: Array, *, target: EmbeddingModel) -> Array:
        logits, vocabulary = (
            self.own_logits(params, hidden, target=target),
            target.config.vocabulary,
        )
        if params.tokens is not None:
            return _spread(logits, params.tokens, vocabulary)
        if logits.shape[-1] != vocabulary:
            raise ValueError(
                f"a head of {logits.shape[-1]} tokens for a target of {vocabulary}: give its d2t"
            )
        return logits

    def own_logits(self, params: HeadParams, hidden: Array, *, target: EmbeddingModel) -> Array:
        return self.module.apply({"params": params.head}, hidden, method="logits")

    def _variables(self, key: Array) -> Params:
        return self.module.init(key, method=_call_everything)["params"]


class Eagle3Layer(nn.Module):
    """A Transformer layer whose attention reads an embedding and a feature side by side, each with
    its norm, and whose residual is the feature. `eagle3` tells of the attributes."""

    config: ModelConfig
    layers: tuple[int, ...]
    draft_vocabulary: int
    target_width: int
    own_embedding: bool = False
    norm_before_residual: bool = False
    norm_output: bool = False
    fc_norm: bool = False
    norm_before_fc: bool = False

    def setup(self) -> None:
        c = self.config
        norm = NORMS[c.norm]
        if self.own_embedding:
            init = named(nn.initializers.normal(c.width**-0.5), "vocabulary", "width")
            self.embedding = self.param("embedding", init, (c.vocabulary, c.width))
        if self.fc_norm:
            self.layer_norms = [
                norm(c.epsilon, name=f"layer_norm_{i}") for i in range(len(self.layers))
            ]
        if self.norm_before_fc:
            self.input_norm = norm(c.epsilon)
        self.fusion = Linear(c.width, ("width", None))
        self.embedding_norm = norm(c.epsilon)
        self.feature_norm = norm(c.epsilon)
        self.attention = Attention(c, 0)
        self.feedforward_norm = norm(c.epsilon)
        self.feedforward = GatedFeedForward(c)
        self.norm = norm(c.epsilon)
        self.head = Linear(self.draft_vocabulary, ("draft_vocabulary", "width"))

    def fuse(self, seen: Array) -> Array:
        """`Head.fuse`."""
        if self.fc_norm:
            parts = jnp.split(seen, len(self.layers), axis=-1)
            normed = [norm(x) for norm, x in zip(self.layer_norms, parts, strict=True)]
            seen = jnp.concatenate(normed, axis=-1)
        if self.norm_before_fc:
            seen = self.input_norm(seen)
        return self.fusion(seen)

    def look_up(self, tokens: Array) -> Array:
        """Rows of its own embedding."""
        return rows_to_look_up(self.embedding, len(tokens))[tokens]

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
        features = features.astype(embedded.dtype)
        normed = self.feature_norm(features)
        both = jnp.concatenate([self.embedding_norm(embedded), normed], axis=-1)
        sight = Sight(turns(positions, c.channels, c.rope_theta, c.rope_scaling), mask)
        y, (key, value) = self.attention(both, sight, cache, block, start)
        x = constrain((normed if self.norm_before_residual else features) + y, "batch", None, None)
        x = x + self.feedforward(self.feedforward_norm(x))
        hidden = self.norm(x)
        following = hidden if self.norm_output else x
        return Guess(hidden, following, Block((key,), (value,)))

    def logits(self, hidden: Array) -> Array:
        """Over its own tokens."""
        return self.head(hidden).astype(jnp.float32)


def _call_everything(module: Eagle3Layer) -> Array:
    """All of it on one token, which makes every parameter."""
    place, mask = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)
    fused = module.fuse(jnp.zeros((1, 1, len(module.layers) * module.target_width)))
    embedded = module.look_up(place) if module.own_embedding else jnp.zeros_like(fused)
    return module.logits(module(embedded, fused, place, mask).hidden)


def _spread(logits: Array, tokens: Array, vocabulary: int) -> Array:
    """Logits `[..., n]` of `tokens` `[n]` among all: `[..., V]`, `-inf` for the rest."""
    # Where each token is found, once, and then a gather, which is parallel where a scatter is not.
    nowhere = len(tokens)
    place = jnp.full((vocabulary,), nowhere).at[tokens].set(jnp.arange(nowhere), mode="drop")
    ends = [(0, 0)] * (logits.ndim - 1) + [(0, 1)]
    wide = jnp.pad(logits, ends, constant_values=-jnp.inf)
    return jnp.take(wide, place, axis=-1, mode="clip")

"""EAGLE-3's head (arXiv 2503.01840), which reads several layers of the target.

It has a norm and an output matrix of its own, and may have a vocabulary and an embedding.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jspec.config import ModelConfig
from jspec.core.cache import Block, Cache
from jspec.models.heads import Head, HeadOutput, HeadParams
from jspec.models.layers import NORMS, Attention, AttentionContext, GatedMLP, Linear, rotary_angles
from jspec.models.protocol import EmbeddingModel, Output, Params
from jspec.parallel.sharding import constrain, named, rows_to_look_up


def eagle3(
    config: ModelConfig,
    *,
    layers: tuple[int, ...],
    draft_vocab_size: int | None = None,
    target_hidden_size: int | None = None,
    own_embedding: bool = False,
    norm_before_residual: bool = False,
    norm_output: bool = False,
    fc_norm: bool = False,
    norm_before_fc: bool = False,
) -> "Eagle3":
    """The head that `config` describes: that of a Llama of one layer with the target's vocabulary.

    Args:
      layers: of the target, whose inputs it reads, in this order; see `usual_layers`.
      draft_vocab_size: how many tokens it can draft; None for all.
      target_hidden_size: of what those layers read; None for the head's own.
      own_embedding: whether it has an embedding; otherwise it uses the target's.
      norm_before_residual: whether the residual is the feature after its norm.
      norm_output: whether the next feature is the output after its norm.
      fc_norm: whether the input of each layer is normed before they are fused.
      norm_before_fc: whether one norm covers all of them.

    Raises `ValueError` for arguments that contradict each other.
    """
    tokens = config.vocab_size if draft_vocab_size is None else draft_vocab_size
    width = config.hidden_size if target_hidden_size is None else target_hidden_size
    if not layers:
        raise ValueError("layers=(): a head reads at least one layer of the target")
    if not 1 <= tokens <= config.vocab_size:
        raise ValueError(
            f"draft_vocab_size={tokens}: must be in 1..{config.vocab_size}, the target's vocab_size"
        )
    if width != config.hidden_size and not own_embedding:
        raise ValueError(
            f"target_hidden_size={width}: without own_embedding the head uses the target's, so "
            f"both have one hidden_size, and the head's is {config.hidden_size}"
        )
    if config.tie_word_embeddings:
        raise ValueError(
            "config.tie_word_embeddings=True: the head has an output matrix of its own: give "
            "tie_word_embeddings=False"
        )
    if fc_norm and norm_before_fc:
        raise ValueError("fc_norm and norm_before_fc exclude each other: give one of them")
    module = Eagle3Layer(
        config,
        layers=tuple(layers),
        draft_vocab_size=tokens,
        target_hidden_size=width,
        own_embedding=own_embedding,
        norm_before_residual=norm_before_residual,
        norm_output=norm_output,
        fc_norm=fc_norm,
        norm_before_fc=norm_before_fc,
    )
    return Eagle3(module, config)


def usual_layers(count: int) -> tuple[int, int, int]:
    """Those that EAGLE-3 reads of a target of `count` layers: a low, a middle and a high one.

    Raises `ValueError` where those are not three.

    >>> usual_layers(32)
    (2, 16, 29)
    """
    if count < 7:
        raise ValueError(f"a target of {count} layers has no usual three to read: name them")
    return 2, count // 2, count - 3


def check_d2t(d2t: np.ndarray, vocab_size: int) -> None:
    """Raises `ValueError` unless each draft token has a target token of its own.

    Reads the values, so not under jit.

    Args:
      d2t: `[draft vocabulary]` integer offsets.
      vocab_size: the target's.
    """
    d2t = np.asarray(d2t)
    if d2t.ndim != 1 or not np.issubdtype(d2t.dtype, np.integer):
        raise ValueError(
            f"d2t is {d2t.dtype} {list(d2t.shape)}: it must be whole numbers [draft vocabulary]"
        )
    tokens = np.arange(len(d2t)) + d2t.astype(np.int64)
    wrong = np.flatnonzero((tokens < 0) | (tokens >= vocab_size))
    if len(wrong):
        ids = d2t.min() >= 0 and d2t.max() < vocab_size and len(np.unique(d2t)) == len(d2t)
        cause = "; it seems to hold the tokens themselves, not token - index" if ids else ""
        raise ValueError(
            f"d2t makes token {tokens[wrong[0]]} of draft token {wrong[0]}: the target's tokens "
            f"are 0..{vocab_size - 1}{cause}"
        )
    found, count = np.unique(tokens, return_counts=True)
    if len(found) < len(tokens):
        raise ValueError(
            f"d2t makes token {found[count.argmax()]} of {count.max()} draft tokens: each must "
            "have one of its own"
        )


@dataclass(frozen=True)
class Eagle3(Head):
    """EAGLE-3's head, as `eagle3` makes it."""

    module: "Eagle3Layer"

    @property
    def kind(self) -> str:
        """`Head.kind`."""
        return "eagle3"

    @property
    def layers(self) -> tuple[int, ...]:
        """`Head.layers`."""
        return self.module.layers

    @property
    def target_hidden_size(self) -> int:
        """`Head.target_hidden_size`."""
        return self.module.target_hidden_size

    @property
    def draft_vocab_size(self) -> int:
        """`Head.draft_vocab_size`."""
        return self.module.draft_vocab_size

    def read_hidden_states(self, output: Output) -> Array:
        """The inputs of its layers side by side; raises `ValueError` if `output` has others."""
        wanted = [self.module.target_hidden_size] * len(self.layers)
        sizes = [x.shape[-1] for x in output.hidden_states]
        if sizes != wanted:
            raise ValueError(
                f"the target returns hidden states of sizes {sizes}, and this head reads {wanted}: "
                f"give with_hidden_states(target, {self.layers})"
            )
        return jnp.concatenate(output.hidden_states, axis=-1)

    def fuse(self, params: Params, hidden_states: Array) -> Array:
        """`Head.fuse`."""
        return self._apply(params, hidden_states, method="fuse")

    def embed(self, params: HeadParams, tokens: Array, *, target: EmbeddingModel) -> Array:
        """`Head.embed`, by its own embedding if it has one."""
        if not self.module.own_embedding:
            return super().embed(params, tokens, target=target)
        return self._apply(params.head, tokens, method="look_up")

    def logits(self, params: HeadParams, hidden: Array, *, target: EmbeddingModel) -> Array:
        """`Head.logits`."""
        logits = self.own_logits(params, hidden, target=target)
        vocab_size = target.config.vocab_size
        if params.tokens is not None:
            return _spread(logits, params.tokens, vocab_size)
        if logits.shape[-1] != vocab_size:
            raise ValueError(
                f"a head of {logits.shape[-1]} tokens for a target of {vocab_size}: give its d2t"
            )
        return logits

    def own_logits(
        self,
        params: HeadParams,
        hidden: Array,
        *,
        target: EmbeddingModel,  # noqa: ARG002
    ) -> Array:
        """`Head.own_logits`, by its own output matrix."""
        return self._apply(params.head, hidden, method="logits")

    def _variables(self, key: Array) -> Params:
        return self.module.init(key, method=_call_everything)["params"]


class Eagle3Layer(nn.Module):
    """A Transformer layer whose attention reads an embedding and a feature, each after its norm.

    They are side by side, and the residual is the feature. `eagle3` explains the attributes.
    """

    config: ModelConfig
    layers: tuple[int, ...]
    draft_vocab_size: int
    target_hidden_size: int
    own_embedding: bool = False
    norm_before_residual: bool = False
    norm_output: bool = False
    fc_norm: bool = False
    norm_before_fc: bool = False

    def setup(self) -> None:
        """Makes the parameters."""
        c = self.config
        norm = NORMS[c.norm]
        if self.own_embedding:
            init = named(nn.initializers.normal(c.hidden_size**-0.5), "vocab_size", "hidden_size")
            self.embedding = self.param("embedding", init, (c.vocab_size, c.hidden_size))
        if self.fc_norm:
            self.layer_norms = [
                norm(c.norm_eps, name=f"layer_norm_{i}") for i in range(len(self.layers))
            ]
        if self.norm_before_fc:
            self.input_norm = norm(c.norm_eps)
        self.fusion = Linear(c.hidden_size, ("hidden_size", None))
        self.embedding_norm = norm(c.norm_eps)
        self.feature_norm = norm(c.norm_eps)
        self.attention = Attention(c, 0)
        self.feedforward_norm = norm(c.norm_eps)
        self.feedforward = GatedMLP(c)
        self.norm = norm(c.norm_eps)
        axes = "draft_vocab_size", "hidden_size"
        self.head = Linear(self.draft_vocab_size, axes, dtype=jnp.float32)

    def fuse(self, hidden_states: Array) -> Array:
        """`Head.fuse`."""
        if self.fc_norm:
            parts = jnp.split(hidden_states, len(self.layers), axis=-1)
            normed = [norm(x) for norm, x in zip(self.layer_norms, parts, strict=True)]
            hidden_states = jnp.concatenate(normed, axis=-1)
        if self.norm_before_fc:
            hidden_states = self.input_norm(hidden_states)
        return self.fusion(hidden_states)

    def look_up(self, tokens: Array) -> Array:
        """Rows of its own embedding: `[B, T]` -> `[B, T, D]`."""
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
    ) -> HeadOutput:
        """`Head.forward`."""
        c = self.config
        features = features.astype(embedded.dtype)
        normed = self.feature_norm(features)
        both = jnp.concatenate([self.embedding_norm(embedded), normed], axis=-1)
        context = AttentionContext(
            rotary_angles(positions, c.head_dim, c.rope_theta, c.rope_scaling), mask
        )
        y, (key, value) = self.attention(both, context, cache, block, start)
        x = constrain((normed if self.norm_before_residual else features) + y, "batch", None, None)
        x = x + self.feedforward(self.feedforward_norm(x))
        hidden = self.norm(x)
        following = hidden if self.norm_output else x
        return HeadOutput(hidden, following, Block((key,), (value,)))

    def logits(self, hidden: Array) -> Array:
        """Over its own tokens: `[..., D]` -> `[..., draft vocabulary]` float32."""
        return self.head(hidden)


def _call_everything(module: Eagle3Layer) -> Array:
    """All of it on one token, which makes every parameter."""
    place, mask = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)
    width = len(module.layers) * module.target_hidden_size
    fused = module.fuse(jnp.zeros((1, 1, width), jnp.float32))
    embedded = module.look_up(place) if module.own_embedding else jnp.zeros_like(fused)
    return module.logits(module(embedded, fused, place, mask).hidden)


def _spread(logits: Array, tokens: Array, vocab_size: int) -> Array:
    """Logits `[..., n]` of `tokens` `[n]` among all: `[..., V]`, `-inf` for the others."""
    # One scatter finds the place of each token; the gather is parallel where a scatter is not.
    missing = len(tokens)
    places = jnp.arange(missing, dtype=jnp.int32)
    place = jnp.full((vocab_size,), missing, jnp.int32).at[tokens].set(places, mode="drop")
    ends = [(0, 0)] * (logits.ndim - 1) + [(0, 1)]
    padded = jnp.pad(logits, ends, constant_values=-jnp.inf)
    return jnp.take(padded, place, axis=-1, mode="clip")

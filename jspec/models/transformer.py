"""A decoder-only Transformer with explicit state: Llama, Mistral, Qwen, Gemma, OPT by its fields.

The same call prefills, decodes, drafts, verifies and trains: only the mask differs.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jspec.config import ModelConfig
from jspec.core.attention import within
from jspec.core.cache import Block, Cache
from jspec.models.layers import (
    NORMS,
    Attention,
    GatedFeedForward,
    Linear,
    PlainFeedForward,
    Rows,
    Sight,
    turns,
)
from jspec.models.protocol import LinenModel, Output
from jspec.parallel.sharding import constrain, named, rows_to_look_up

# A table of learned positions begins with rows that no position has: OPT's files hold two.
UNUSED_POSITIONS = 2


def transformer(
    config: ModelConfig, *, remat: bool = False, features: tuple[int, ...] = ()
) -> LinenModel:
    """The model that `config` describes.

    Args:
      remat: whether a layer's inner values are computed again for its gradient, and not kept.
      features: `observed`'s layers.
    """
    return observed(LinenModel(Transformer(config, remat), config), features)


def observed(model: LinenModel, layers: Sequence[int]) -> LinenModel:
    """The same model, which shows in `Output.features` what each of `layers` reads, `[B, T, D]`.

    Layer L, which there is not, reads what the last one gives, before the last norm. Raises
    `ValueError` for any other layer that there is not, and for a module that is not ours.
    """
    module = getattr(model, "module", None)
    ours = isinstance(module, Transformer)
    if tuple(layers) == (module.features if ours else ()):
        return model
    if not ours:
        raise ValueError(
            f"model={type(model).__name__}: only our own show what their layers read; a module of "
            "your own puts it into its Output.features"
        )
    check_layers(layers, model.config.layers)
    return dataclasses.replace(model, module=module.clone(features=tuple(layers)))


def check_layers(layers: Sequence[int], count: int) -> None:
    """Raises `ValueError` for layers of which a target of `count` shows nothing."""
    for layer in layers:
        if layer not in range(count + 1):
            raise ValueError(
                f"layer {layer} of the target reads no features: it has layers 0 to {count - 1}, "
                f"and {count} stands for what the last of them gives"
            )


class Transformer(nn.Module):
    """Embedding, L layers, a last norm, and a head that is its own or the embedding.

    Attributes:
      features: layers whose inputs are shown.
    """

    config: ModelConfig
    remat: bool = False
    features: tuple[int, ...] = ()

    def setup(self) -> None:
        c = self.config
        self.embedding = self.param(
            "embedding",
            named(nn.initializers.normal(c.width**-0.5), "vocabulary", "width"),
            (c.vocabulary, c.width),
        )
        if c.learned_positions:
            self.positions = self.param(
                "positions",
                named(nn.initializers.normal(c.width**-0.5), None, "width"),
                (UNUSED_POSITIONS + c.context, c.width),
            )
        layer = nn.remat(Layer, static_argnums=(5,)) if self.remat else Layer
        self.layers = [layer(c, i, name=f"layer_{i}") for i in range(c.layers)]
        if c.final_norm:
            self.norm = NORMS[c.norm](c.epsilon)
        if not c.tied:
            self.head = Linear(c.vocabulary, ("vocabulary", "width"))

    def __call__(
        self,
        tokens: Array,
        positions: Array,
        mask: Array,
        cache: Cache | None = None,
        block: Block | None = None,
        start: int = 0,
    ) -> Output:
        """`Model.forward`."""
        c = self.config
        x = constrain(self.embed(tokens, positions), "batch", None, None)
        whole = self._sight(positions, mask)
        local = self._local_sight(positions, mask) if c.local_layers else whole
        inputs, keys, values = [x], [], []
        for i, layer in enumerate(self.layers):
            sight = local if i in c.local_layers else whole
            x, (k, v) = layer(x, sight, cache, block, start)
            inputs.append(x)
            keys.append(k)
            values.append(v)
        hidden = self.norm(x) if c.final_norm else x
        return Output(
            hidden=hidden,
            block=Block(tuple(keys), tuple(values)),
            features=tuple(inputs[i] for i in self.features),
        )

    def logits(self, hidden: Array) -> Array:
        """`Model.logits`."""
        c = self.config
        if not c.tied:
            logits = self.head(hidden).astype(jnp.float32)
        else:
            logits = jax.lax.dot_general(
                hidden,
                self.embedding,
                (((hidden.ndim - 1,), (1,)), ((), ())),
                preferred_element_type=jnp.float32,
            )
        return logits if c.logit_cap is None else c.logit_cap * jnp.tanh(logits / c.logit_cap)

    def look_up(self, tokens: Array) -> Array:
        """`EmbeddingModel.embed`."""
        return rows_to_look_up(self.embedding, len(tokens))[tokens]

    def embed(self, tokens: Array, positions: Array) -> Array:
        """What the first layer reads: `[B, T]` twice -> `[B, T, D]`."""
        x = self.look_up(tokens)
        if self.config.scale_embedding:
            # Rounded as the embedding is: Gemma was trained with the root in bfloat16.
            x = x * jnp.asarray(self.config.width**0.5, x.dtype)
        if self.config.learned_positions:
            x = x + self.positions[positions + UNUSED_POSITIONS]
        return x

    def _sight(self, positions: Array, mask: Array) -> Sight:
        """Of layers that see everything."""
        c = self.config
        if c.learned_positions:
            return Sight(None, mask)
        return Sight(turns(positions, c.channels, c.rope_theta, c.rope_scaling), mask)

    def _local_sight(self, positions: Array, mask: Array) -> Sight:
        """Of layers that see a window."""
        c = self.config
        sight = self._sight(positions, mask)
        if c.local_rope_theta is not None:
            sight = sight._replace(turn=turns(positions, c.channels, c.local_rope_theta, None))
        near, first = within(c.window, mask, positions)
        return sight._replace(mask=near, first=first)


class Layer(nn.Module):
    """Attention and a feed-forward network, each with its norms beside a residual."""

    config: ModelConfig
    index: int

    @nn.compact
    def __call__(
        self, x: Array, sight: Sight, cache: Cache | None, block: Block | None, start: int
    ) -> tuple[Array, Rows]:
        """`x` `[B, T, D]` -> `[B, T, D]` and the block's keys and values `[B, K, N, C]`."""
        c = self.config
        feedforward = GatedFeedForward if c.gated else PlainFeedForward
        y, rows = Attention(c, self.index, name="attention")(
            _enter(x, "attention", c), sight, cache, block, start
        )
        x = _leave(x, y, "attention", c)
        y = feedforward(c, name="feedforward")(_enter(x, "feedforward", c))
        x = _leave(x, y, "feedforward", c)
        return constrain(x, "batch", None, None), rows


def _enter(x: Array, sublayer: str, c: ModelConfig) -> Array:
    """What a sublayer reads of the residual `x`."""
    return x if c.norm_place == "after" else NORMS[c.norm](c.epsilon, name=f"{sublayer}_norm")(x)


def _leave(x: Array, y: Array, sublayer: str, c: ModelConfig) -> Array:
    """The residual `x` once a sublayer has written `y`."""
    if c.norm_place == "before":
        return x + y
    if c.norm_place == "around":
        return x + NORMS[c.norm](c.epsilon, name=f"{sublayer}_out_norm")(y)
    return NORMS[c.norm](c.epsilon, name=f"{sublayer}_norm")(x + y)

"""A decoder-only Transformer of the Llama family, with explicit state.

The same call prefills, decodes, drafts, verifies and trains: only the mask differs.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jspec.attention import attend
from jspec.cache import Block, Cache
from jspec.config import ModelConfig, RopeScaling
from jspec.models.protocol import LinenModel, Output
from jspec.sharding import constrain, named


def transformer(config: ModelConfig) -> LinenModel:
    """The model that `config` describes."""
    return LinenModel(Transformer(config), config)


class Transformer(nn.Module):
    """Embedding, L layers, a last norm, and a head that is its own or the embedding."""

    config: ModelConfig

    def setup(self) -> None:
        c = self.config
        self.embedding = self.param(
            "embedding",
            named(nn.initializers.normal(c.width**-0.5), "vocabulary", "width"),
            (c.vocabulary, c.width),
        )
        self.layers = [Layer(c, name=f"layer_{i}") for i in range(c.layers)]
        self.norm = Norm(c.epsilon)
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
        x = constrain(self.embedding[tokens], "batch", None, None)
        turn = _turns(positions, self.config)
        keys, values = [], []
        for i, layer in enumerate(self.layers):
            past = None if cache is None else (cache.k[i], cache.v[i], cache.length)
            earlier = None if block is None else (block.k[i], block.v[i])
            x, (k, v) = layer(x, turn, mask, past, earlier, start)
            keys.append(k)
            values.append(v)
        return Output(hidden=self.norm(x), block=Block(tuple(keys), tuple(values)))

    def logits(self, hidden: Array) -> Array:
        """`Model.logits`."""
        if not self.config.tied:
            return self.head(hidden).astype(jnp.float32)
        return jax.lax.dot_general(
            hidden,
            self.embedding,
            (((hidden.ndim - 1,), (1,)), ((), ())),
            preferred_element_type=jnp.float32,
        )

    def touch(self) -> Array:
        """Calls everything once on one token, which makes every parameter."""
        one = jnp.zeros((1, 1), jnp.int32)
        return self.logits(self(one, one, jnp.ones((1, 1), bool)).hidden)


class Layer(nn.Module):
    """Attention and a gated feed-forward network, each after a norm and beside a residual."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        turn: tuple[Array, Array],
        mask: Array,
        past: tuple[Array, Array, Array] | None,
        block: tuple[Array, Array] | None,
        start: int,
    ) -> tuple[Array, tuple[Array, Array]]:
        """`x` `[B, T, D]` -> `[B, T, D]` and the block's keys and values `[B, K, N, C]`."""
        c = self.config
        mixed, rows = Attention(c, name="attention")(
            Norm(c.epsilon, name="attention_norm")(x), turn, mask, past, block, start
        )
        x = x + mixed
        x = x + FeedForward(c, name="feedforward")(Norm(c.epsilon, name="feedforward_norm")(x))
        return constrain(x, "batch", None, None), rows


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        turn: tuple[Array, Array],
        mask: Array,
        past: tuple[Array, Array, Array] | None,
        block: tuple[Array, Array] | None,
        start: int,
    ) -> tuple[Array, tuple[Array, Array]]:
        c = self.config

        def heads(name: str, count: int, axis: str) -> Array:
            y = Linear(count * c.channels, (axis, "width"), c.attention_bias, name=name)(x)
            return y.reshape(*x.shape[:2], count, c.channels).swapaxes(1, 2)

        query = _rotate(heads("query", c.heads, "heads"), turn)
        key = _rotate(heads("key", c.kv_heads, "kv_heads"), turn)
        value = heads("value", c.kv_heads, "kv_heads")
        if block is not None:
            put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=2)
            key, value = put(block[0], key), put(block[1], value)
        visible = mask.shape[-1]
        mixed = attend(query, key[:, :, :visible], value[:, :, :visible], mask, *(past or ()))
        mixed = mixed.swapaxes(1, 2).reshape(*x.shape[:2], c.heads * c.channels)
        out = Linear(c.width, ("width", "heads"), c.attention_bias, name="out")(mixed)
        return out, (key, value)


class FeedForward(nn.Module):
    """`down(silu(gate(x)) * up(x))`."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        wide = functools.partial(
            Linear, c.feedforward, ("feedforward", "width"), c.feedforward_bias
        )
        gated = nn.silu(wide(name="gate")(x)) * wide(name="up")(x)
        return Linear(c.width, ("width", "feedforward"), c.feedforward_bias, name="down")(gated)


class Linear(nn.Module):
    """`x @ weight.T`; the weight is `[out, in]`, as files hold it."""

    features: int
    axes: tuple[str, str]
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=1, out_axis=0)
        weight = self.param("weight", named(init, *self.axes), (self.features, x.shape[-1]))
        y = jax.lax.dot_general(x, weight, (((x.ndim - 1,), (1,)), ((), ())))
        if self.use_bias:
            bias = named(nn.initializers.zeros, self.axes[0])
            y = y + self.param("bias", bias, (self.features,))[None, None]
        return y


class Norm(nn.Module):
    """Root-mean-square norm, computed in float32."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        weight = self.param("weight", named(nn.initializers.ones, None), (x.shape[-1],))
        wide = x.astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        return (wide * scale).astype(x.dtype) * weight[None, None]


def _turns(positions: Array, config: ModelConfig) -> tuple[Array, Array]:
    """Cosines and sines of the rotary angles at `[B, T]`: `[B, 1, T, C / 2]` float32 each."""
    exponents = np.arange(0, config.channels, 2, dtype=np.float64) / config.channels
    frequencies = config.rope_theta**-exponents
    if config.rope_scaling is not None:
        frequencies = _stretch(frequencies, config.rope_scaling)
    rates = frequencies.astype(np.float32)[None, None, None]
    angles = positions[:, None, :, None].astype(jnp.float32) * rates
    return jnp.cos(angles), jnp.sin(angles)


def _stretch(frequencies: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Divides frequencies by the factor: all of them, or (Llama 3.1) the slow ones, with a ramp."""
    slow = frequencies / scaling.factor
    if scaling.linear:
        return slow
    turns = scaling.original_context * frequencies / (2 * math.pi)
    ramp = (turns - scaling.low_frequency) / (scaling.high_frequency - scaling.low_frequency)
    fast = np.clip(ramp, 0.0, 1.0)
    return fast * frequencies + (1 - fast) * slow


def _rotate(x: Array, turn: tuple[Array, Array]) -> Array:
    """Turns channel pairs `(c, c + C / 2)` of `[B, H, T, C]` by their angles."""
    cos, sin = turn
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return turned.astype(x.dtype)

"""A decoder-only Transformer with explicit state: Llama, Mistral, Qwen, Gemma and OPT by config.

The same call prefills, decodes, drafts, verifies and trains: only the mask differs.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jspec.config import ModelConfig
from jspec.core.attention import window_mask
from jspec.core.cache import Block, Cache
from jspec.core.products import project
from jspec.models.layers import (
    NORMS,
    Attention,
    AttentionContext,
    GatedMLP,
    Linear,
    PlainMLP,
    Rows,
    rotary_angles,
)
from jspec.models.protocol import FlaxModel, Model, Output, Params
from jspec.parallel.sharding import constrain, named, rows_to_look_up

# A table of learned positions begins with rows that no position uses: OPT's files have two.
UNUSED_POSITIONS = 2

AnyModel = TypeVar("AnyModel", bound=Model)


def transformer(
    config: ModelConfig, *, remat: bool = False, hidden_state_layers: tuple[int, ...] = ()
) -> "TransformerModel":
    """The model that `config` describes.

    Args:
      remat: whether a layer's activations are recomputed for its gradient instead of stored.
      hidden_state_layers: as `with_hidden_states` takes them.

    >>> config = ModelConfig(
    ...     vocab_size=61, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    ...     num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=128,
    ... )
    >>> model = transformer(config)
    >>> params = model.init(jax.random.key(0))
    >>> params["embedding"].shape
    (61, 32)
    """
    model = TransformerModel(Transformer(config, remat), config)
    return with_hidden_states(model, hidden_state_layers)


def with_hidden_states(model: AnyModel, layers: Sequence[int]) -> AnyModel:
    """The same model, whose `Output.hidden_states` are the inputs of `layers`, `[B, T, D]` each.

    Layer L stands for the output of the last layer, before the last norm. Raises `ValueError` for
    other layers that the model does not have, and for a module of the user's own.
    """
    found = isinstance(model, TransformerModel)
    if tuple(layers) == (model.module.hidden_state_layers if found else ()):
        return model
    if not isinstance(model, TransformerModel):
        raise ValueError(
            f"model={type(model).__name__}: only models of jspec.transformer return their layers' "
            "inputs; a module of your own puts them into its Output.hidden_states"
        )
    check_layers(layers, model.config.num_hidden_layers)
    module = model.module.clone(hidden_state_layers=tuple(layers))
    return dataclasses.replace(model, module=module)


def check_layers(layers: Sequence[int], count: int) -> None:
    """Raises `ValueError` for layers whose inputs a target of `count` layers cannot return."""
    for layer in layers:
        if layer not in range(count + 1):
            raise ValueError(
                f"layer {layer} of the target has no hidden states: it has layers 0 to "
                f"{count - 1}, and {count} stands for the output of the last of them"
            )


@dataclass(frozen=True)
class TransformerModel(FlaxModel):
    """A `Transformer` as pure functions of its parameters, as `transformer` makes it.

    >>> target.model.embed(target.params, jnp.array([[5, 3]])).shape
    (1, 2, 448)
    """

    module: "Transformer"
    config: ModelConfig

    def embed(self, params: Params, tokens: Array) -> Array:
        """`EmbeddingModel.embed`."""
        return self._apply(params, tokens, method="look_up")


class Transformer(nn.Module):
    """Embedding, L layers, a last norm, and an output matrix, which may be the embedding.

    Attributes:
      hidden_state_layers: layers whose inputs are returned.
    """

    config: ModelConfig
    remat: bool = False
    hidden_state_layers: tuple[int, ...] = ()

    def setup(self) -> None:
        """Makes the parameters."""
        c = self.config
        init = nn.initializers.normal(c.hidden_size**-0.5)
        self.embedding = self.param(
            "embedding", named(init, "vocab_size", "hidden_size"), (c.vocab_size, c.hidden_size)
        )
        if c.learned_positions:
            self.positions = self.param(
                "positions",
                named(init, None, "hidden_size"),
                (UNUSED_POSITIONS + c.max_position_embeddings, c.hidden_size),
            )
        layer = nn.remat(Layer, static_argnums=(5,)) if self.remat else Layer
        self.layers = [layer(c, i, name=f"layer_{i}") for i in range(c.num_hidden_layers)]
        if c.final_norm:
            self.norm = NORMS[c.norm](c.norm_eps)
        if not c.tie_word_embeddings:
            self.head = Linear(c.vocab_size, ("vocab_size", "hidden_size"), dtype=jnp.float32)

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
        full = self._context(positions, mask)
        sliding = full if c.sliding_window is None else self._sliding_context(positions, mask)
        inputs, keys, values = [x], [], []
        for i, layer in enumerate(self.layers):
            context = sliding if i in c.sliding_layers else full
            x, (k, v) = layer(x, context, cache, block, start)
            inputs.append(x)
            keys.append(k)
            values.append(v)
        hidden = self.norm(x) if c.final_norm else x
        return Output(
            hidden=hidden,
            block=Block(tuple(keys), tuple(values)),
            hidden_states=tuple(inputs[i] for i in self.hidden_state_layers),
        )

    def logits(self, hidden: Array) -> Array:
        """`Model.logits`."""
        c = self.config
        if not c.tie_word_embeddings:
            logits = self.head(hidden)
        else:
            logits = project(hidden, self.embedding, jnp.float32)
        cap = c.final_logit_softcapping
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def look_up(self, tokens: Array) -> Array:
        """`EmbeddingModel.embed`."""
        return rows_to_look_up(self.embedding, len(tokens))[tokens]

    def embed(self, tokens: Array, positions: Array) -> Array:
        """The input of the first layer: `[B, T]` twice -> `[B, T, D]`."""
        x = self.look_up(tokens)
        if self.config.scale_embedding:
            # Rounded as the embedding is: Gemma was trained with the root in bfloat16.
            x = x * jnp.asarray(self.config.hidden_size**0.5, x.dtype)
        if self.config.learned_positions:
            x = x + self.positions[positions + UNUSED_POSITIONS]
        return x

    def _context(self, positions: Array, mask: Array) -> AttentionContext:
        """For layers that see everything."""
        c = self.config
        if c.learned_positions:
            return AttentionContext(None, mask)
        rotary = rotary_angles(positions, c.head_dim, c.rope_theta, c.rope_scaling)
        return AttentionContext(rotary, mask)

    def _sliding_context(self, positions: Array, mask: Array) -> AttentionContext:
        """For layers that see a window."""
        c = self.config
        context = self._context(positions, mask)
        if c.sliding_rope_theta is not None:
            rotary = rotary_angles(positions, c.head_dim, c.sliding_rope_theta, None)
            context = context._replace(rotary=rotary)
        near, first = window_mask(c.sliding_window or 0, mask, positions)
        return context._replace(mask=near, first=first)


class Layer(nn.Module):
    """Attention and a feed-forward network, each with its norms beside a residual."""

    config: ModelConfig
    index: int

    @nn.compact
    def __call__(
        self,
        x: Array,
        context: AttentionContext,
        cache: Cache | None,
        block: Block | None,
        start: int,
    ) -> tuple[Array, Rows]:
        """`x` `[B, T, D]` -> `[B, T, D]` and the block's keys and values `[B, K, N, C]`."""
        c = self.config
        mlp = GatedMLP if c.gated else PlainMLP
        y, rows = Attention(c, self.index, name="attention")(
            _norm_input(x, "attention", c), context, cache, block, start
        )
        x = _add_output(x, y, "attention", c)
        y = mlp(c, name="feedforward")(_norm_input(x, "feedforward", c))
        x = _add_output(x, y, "feedforward", c)
        return constrain(x, "batch", None, None), rows


def _norm_input(x: Array, sublayer: str, c: ModelConfig) -> Array:
    """The input of a sublayer, made of the residual `x`."""
    return x if c.norm_place == "after" else NORMS[c.norm](c.norm_eps, name=f"{sublayer}_norm")(x)


def _add_output(x: Array, y: Array, sublayer: str, c: ModelConfig) -> Array:
    """The residual `x` after the output `y` of a sublayer."""
    if c.norm_place == "before":
        return x + y
    if c.norm_place == "around":
        return x + NORMS[c.norm](c.norm_eps, name=f"{sublayer}_out_norm")(y)
    return NORMS[c.norm](c.norm_eps, name=f"{sublayer}_norm")(x + y)

"""Teacher-forced passes: what a model or a head says after each token of a text that is there."""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from jspec.models.heads import Head, HeadParams
from jspec.models.protocol import EmbeddingModel, Model, Params


@functools.partial(jax.jit, static_argnames=("model",))
def model_pass(params: Params, tokens: Array, *, model: Model) -> tuple[Array, Array]:
    """A model's hidden states `[B, T, D]` at `tokens` `[B, T]`, and its logits `[B, T, V]`."""
    hidden = model.forward(params, tokens, *causal(tokens)).hidden
    return hidden, model.logits(params, hidden)


def model_logits(params: Params, tokens: Array, *, model: Model) -> Array:
    """A model's logits after each of `tokens` `[B, T]`: `[B, T, V]`."""
    return model_pass(params, tokens, model=model)[1]


@functools.partial(jax.jit, static_argnames=("head", "model"))
def target_hidden_states(params: Params, tokens: Array, *, head: Head, model: Model) -> Array:
    """What a head reads of its target at each of `tokens` `[B, T]`: `[B, T, E]`."""
    return head.read_hidden_states(model.forward(params, tokens, *causal(tokens)))


@functools.partial(jax.jit, static_argnames=("head", "target"))
def head_pass(
    params: HeadParams, tokens: Array, hidden_states: Array, *, head: Head, target: EmbeddingModel
) -> tuple[Array, Array]:
    """A head's hidden states `[B, T, D]` and logits `[B, T, V]` after each of `tokens` `[B, T]`;
    zeros at the first token, after which a head says nothing.

    Args:
      hidden_states: `[B, T, E]` what it reads of the target at those tokens.
    """
    following = tokens[:, 1:]
    embedded = head.embed(params, following, target=target)
    features = head.fuse(params.head, hidden_states[:, :-1])
    output = head.forward(params.head, embedded, features, *causal(following))
    logits = head.logits(params, output.hidden, target=target)
    first = ((0, 0), (1, 0), (0, 0))
    return jnp.pad(output.hidden, first), jnp.pad(logits, first)


def head_logits(
    params: HeadParams, tokens: Array, hidden_states: Array, *, head: Head, target: EmbeddingModel
) -> Array:
    """The logits of `head_pass` alone."""
    return head_pass(params, tokens, hidden_states, head=head, target=target)[1]


@functools.partial(jax.jit, static_argnames=("head", "target"))
def head_second_logits(
    params: HeadParams, tokens: Array, hidden_states: Array, *, head: Head, target: EmbeddingModel
) -> Array:
    """A head's logits where it reads, for the last token alone, the feature that it predicted
    itself, as it does one level below the root: `[B, T, V]`, zeros after the first two tokens."""
    following, length = tokens[:, 1:], tokens.shape[1] - 1
    embedded = head.embed(params, following, target=target)
    features = head.fuse(params.head, hidden_states[:, :-1])
    positions, mask = causal(following)
    output = head.forward(params.head, embedded, features, positions, mask)
    room = ((0, 0), (0, 0), (0, length), (0, 0))
    block = jax.tree.map(lambda x: jnp.pad(x, room), output.block)
    # Of the first pass a row sees what is before it, and of the second itself.
    before = jnp.tril(jnp.ones((length, length), bool), -1)
    mask = jnp.concatenate([before, jnp.eye(length, dtype=bool)], axis=1)
    features = jnp.roll(output.features, 1, axis=1)
    again = head.forward(params.head, embedded, features, positions, mask, None, block, length)
    logits = head.logits(params, again.hidden, target=target)
    return jnp.pad(logits, ((0, 0), (1, 0), (0, 0)))


def causal(tokens: Array) -> tuple[Array, Array]:
    """Positions `[B, T]` and the causal mask `[T, T]` of whole texts in one pass."""
    length = tokens.shape[1]
    positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], tokens.shape)
    return positions, jnp.tril(jnp.ones((length, length), bool))

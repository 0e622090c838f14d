"""What a sequence holds so far changes its next token: penalties, and a least length.

A tree node is processed as if the nodes above it were generated, so that each token is penalised as
plain decoding would penalise it.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array


@struct.dataclass
class TokenCounts:
    """How often each token occurs in each sequence.

    Attributes:
      in_prompt: `[B, V]` bool, whether a token is in the prompt.
      generated: `[B, V]` int32, how often it was generated since.
      num_generated: `[B]` generated tokens.
    """

    in_prompt: Array
    generated: Array
    num_generated: Array


@struct.dataclass
class TreeContext:
    """The draft tokens that come before each node of a tree.

    Attributes:
      tokens: `[B, M]` draft tokens.
      ancestors: `[N, M]` or `[B, N, M]` bool, which of them each node continues, itself included.
    """

    tokens: Array
    ancestors: Array


def init_counts(
    tokens: Array, prompt_length: Array, length: Array, *, vocab_size: int
) -> TokenCounts:
    """Counts of `tokens` `[B, M]`: the first `prompt_length` `[B]` are the prompt, the rest of the
    first `length` `[B]` generated."""
    at = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    prompt = at < prompt_length[:, None]
    generated = (at >= prompt_length[:, None]) & (at < length[:, None])
    none = jnp.zeros((len(tokens), vocab_size), jnp.int32)
    return TokenCounts(
        in_prompt=_add(none, tokens, prompt) > 0,
        generated=_add(none, tokens, generated),
        num_generated=length - prompt_length,
    )


def update_counts(counts: TokenCounts, tokens: Array, num_new: Array) -> TokenCounts:
    """The counts once the first `num_new` `[B]` of `tokens` `[B, A]` are generated."""
    new = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None] < num_new[:, None]
    return replace(
        counts,
        generated=_add(counts.generated, tokens, new),
        num_generated=counts.num_generated + num_new,
    )


def apply_penalties(
    logits: Array,
    counts: TokenCounts,
    tree_context: TreeContext | None,
    *,
    repetition: Array,
    presence: Array,
    frequency: Array,
    min_new_tokens: Array,
    stop_token_ids: Array,
) -> Array:
    """Logits `[B, N, V]` after the penalties of `SamplingParams` `[B]`, and its least length.

    In the order of transformers' processors; presence and frequency are OpenAI's, which count what
    was generated and not the prompt. Stop tokens `[B, E]` are masked out until `min_new_tokens`
    `[B]` tokens are generated.
    """
    generated, num_generated = counts.generated[:, None], counts.num_generated[:, None]
    if tree_context is not None:
        batch, nodes = logits.shape[:2]
        shape = batch, nodes, tree_context.ancestors.shape[-1]
        ancestors = jnp.broadcast_to(tree_context.ancestors, shape)
        generated = jnp.broadcast_to(generated, logits.shape)
        generated = jax.vmap(_add, (1, None, 1), 1)(generated, tree_context.tokens, ancestors)
        num_generated = num_generated + ancestors.sum(axis=-1, dtype=jnp.int32)
    repetition, presence, frequency = (x[:, None, None] for x in (repetition, presence, frequency))
    occurs = (generated > 0) | counts.in_prompt[:, None]
    scaled = jnp.where(logits > 0, logits / repetition, logits * repetition)
    logits = jnp.where(occurs, scaled, logits)
    once, often = (x.astype(logits.dtype) for x in (generated > 0, generated))
    logits = logits - presence * once - frequency * often
    early = num_generated < min_new_tokens[:, None]
    stops = _add(jnp.zeros_like(counts.generated), stop_token_ids, stop_token_ids >= 0) > 0
    return jnp.where(early[..., None] & stops[:, None], -jnp.inf, logits)


def _add(counts: Array, tokens: Array, counted: Array) -> Array:
    """`[B, V]` counts, plus one for each of `tokens` `[B, M]` that is `counted`."""
    return jax.vmap(lambda row, t, c: row.at[t].add(c, mode="drop"))(
        counts, tokens, counted.astype(counts.dtype)
    )

"""What a sequence has said so far changes what it says next: penalties, and a least length.

A tree node is warped as if the nodes above it were written, so that each token is penalised as
plain decoding would penalise it.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array


@struct.dataclass
class History:
    """What each sequence holds: `prompted` `[B, V]` bool, whether a token is in the prompt;
    `written` `[B, V]` int32, how often it was written since; `count` `[B]` tokens written."""

    prompted: Array
    written: Array
    count: Array


@struct.dataclass
class Ahead:
    """Tokens `[B, M]` that are not written yet, and `above` `[N, M]` or `[B, N, M]` bool: which of
    them stand between what is written and the one that comes after each node."""

    tokens: Array
    above: Array


@struct.dataclass
class Penalties:
    """Per sequence, every field `[B]`.

    Attributes:
      repetition: float32; logits of tokens in the prompt or the text are divided by it where they
        are positive and multiplied where they are not; 1 changes nothing.
      presence, frequency: float32, taken off once if a token was written, or for each time.
      minimum: int32, tokens to write before an end of text may come.
    """

    repetition: Array
    presence: Array
    frequency: Array
    minimum: Array


def recall(tokens: Array, prompt: Array, length: Array, *, vocabulary: int) -> History:
    """The history of `tokens` `[B, M]`: `prompt` `[B]` of them read, and the rest of the first
    `length` `[B]` written."""
    at = jnp.arange(tokens.shape[1])[None]
    read, wrote = at < prompt[:, None], (at >= prompt[:, None]) & (at < length[:, None])
    none = jnp.zeros((len(tokens), vocabulary), jnp.int32)
    return History(_add(none, tokens, read) > 0, _add(none, tokens, wrote), length - prompt)


def remember(history: History, tokens: Array, count: Array) -> History:
    """The history once the first `count` `[B]` of `tokens` `[B, A]` are written."""
    kept = jnp.arange(tokens.shape[1])[None] < count[:, None]
    return history.replace(written=_add(history.written, tokens, kept), count=history.count + count)


def penalise(
    logits: Array, penalties: Penalties, stops: Array, history: History, ahead: Ahead | None
) -> Array:
    """Logits `[B, N, V]` after repetition, presence and frequency penalties and a least length.

    In the order of transformers' processors; presence and frequency are OpenAI's, which count what
    was written and not the prompt.

    Args:
      stops: `[B, E]` tokens that end a text, withheld until `minimum` tokens are written.
    """
    written, count = history.written[:, None], history.count[:, None]
    if ahead is not None:
        batch, nodes = logits.shape[:2]
        above = jnp.broadcast_to(ahead.above, (batch, nodes, ahead.above.shape[-1]))
        spread = jnp.broadcast_to(written, logits.shape)
        written = jax.vmap(_add, (1, None, 1), 1)(spread, ahead.tokens, above)
        count = count + above.sum(axis=-1)
    repetition, presence, frequency = (
        value[:, None, None]
        for value in (penalties.repetition, penalties.presence, penalties.frequency)
    )
    said = (written > 0) | history.prompted[:, None]
    scaled = jnp.where(logits > 0, logits / repetition, logits * repetition)
    logits = jnp.where(said, scaled, logits)
    logits = logits - presence * (written > 0) - frequency * written
    early = count < penalties.minimum[:, None]
    ends = _add(jnp.zeros_like(history.written), stops, stops >= 0) > 0
    return jnp.where(early[..., None] & ends[:, None], -jnp.inf, logits)


def _add(counts: Array, tokens: Array, kept: Array) -> Array:
    """`[B, V]` counts, plus one for each of `tokens` `[B, M]` that is `kept`."""
    return jax.vmap(lambda row, t, k: row.at[t].add(k, mode="drop"))(
        counts, tokens, kept.astype(counts.dtype)
    )

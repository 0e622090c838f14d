"""How a token is chosen: one warp of the logits, one noise per position, one argmax.

The token at position t of a sequence is `argmax(warp(logits) + noise(key, t))`, whoever asks: plain
decoding, a node of a candidate tree, or a draft that guesses with the same dice. Adding Gumbel
noise to log-probabilities and taking the best samples from the law (the Gumbel-max trick).
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from jspec.core.filters import EVERYTHING, keep_min_p, keep_top_k, keep_top_p
from jspec.core.penalties import Ahead, History, Penalties, penalise
from jspec.core.threefry import gumbel

NO_TOKEN = -1
LARGEST = np.iinfo(np.int32).max


@struct.dataclass
class Sampling:
    """How each sequence samples, and where it ends.

    Attributes:
      temperature: `[B]` float32, 0 for greedy.
      top_k: `[B]` int32, keep the k best tokens; 0 keeps all.
      top_p: `[B]` float32, keep the smallest set of best tokens with at least this mass.
      min_p: `[B]` float32, keep tokens at least this many times as likely as the best; 0 keeps all.
      penalties: for what was said before.
      biased, bias: `[B, E]` tokens, and what is added to their logits; -1 is no token.
      stops: `[B, E]` tokens that end a text; -1 is no token.
    """

    temperature: Array
    top_k: Array
    top_p: Array
    min_p: Array
    penalties: Penalties
    biased: Array
    bias: Array
    stops: Array


def sampling(
    batch: int,
    *,
    temperature: float | Sequence[float] = 0.0,
    top_k: int | Sequence[int] = EVERYTHING,
    top_p: float | Sequence[float] = 1.0,
    min_p: float | Sequence[float] = 0.0,
    repetition: float | Sequence[float] = 1.0,
    presence: float | Sequence[float] = 0.0,
    frequency: float | Sequence[float] = 0.0,
    minimum: int | Sequence[int] = 0,
    bias: Mapping[int, float] | Sequence[Mapping[int, float]] | None = None,
    stops: Sequence[int] = (),
    vocabulary: int | None = None,
) -> Sampling:
    """A `Sampling` for `batch` sequences from one value for all of them or one for each.

    Args:
      bias: what to add to the logits of tokens, which must lie below `vocabulary`.

    Raises `ValueError` for what lies outside its range.
    """
    if batch < 1:
        raise ValueError(f"batch={batch}: at least one sequence")
    if isinstance(stops, int) or any(abs(token) > LARGEST for token in stops):
        raise ValueError(f"stops={stops}: a list of tokens that end a text")
    spread = functools.partial(_spread, batch)
    biased, added = _biases(batch, bias, vocabulary)
    return Sampling(
        temperature=spread(
            "temperature",
            temperature,
            np.float32,
            lambda t: np.isfinite(t) and t >= 0,
            "must be 0 (greedy) or a positive number",
        ),
        top_k=spread(
            "top_k", top_k, np.int32, lambda k: k >= 0, "must be 0 (all) or a whole number"
        ),
        top_p=spread("top_p", top_p, np.float32, lambda p: 0 < p <= 1, "must lie in (0, 1]"),
        min_p=spread("min_p", min_p, np.float32, lambda p: 0 <= p <= 1, "must lie in [0, 1]"),
        penalties=Penalties(
            repetition=spread(
                "repetition",
                repetition,
                np.float32,
                lambda r: np.isfinite(r) and r > 0,
                "must be a positive number; 1 changes nothing",
            ),
            presence=spread("presence", presence, np.float32, np.isfinite, "must be a number"),
            frequency=spread("frequency", frequency, np.float32, np.isfinite, "must be a number"),
            minimum=spread(
                "minimum", minimum, np.int32, lambda n: n >= 0, "must be a whole number of tokens"
            ),
        ),
        biased=biased,
        bias=added,
        stops=jnp.broadcast_to(jnp.asarray(stops, jnp.int32), (batch, len(stops))),
    )


def warp(logits: Array, sampling: Sampling, history: History, ahead: Ahead | None = None) -> Array:
    """Logits of the law that is sampled: divided by the temperature, `-inf` outside the top sets.

    In the order of the field: bias, penalties, temperature, top-k, top-p, min-p. Rows of
    temperature 0 are not divided. What no row asks for is not computed.

    Args:
      logits: `[B, N, V]` float32.
      history: what was said before the root of a tree, the root included.
      ahead: what each node stands behind; nothing in plain decoding.
    """
    if sampling.biased.shape[1]:
        logits = _add_bias(logits, sampling)
    hot = jnp.where(sampling.temperature > 0, sampling.temperature, 1.0)[:, None, None]
    return jax.lax.cond(
        _bare(sampling),
        lambda logits: logits / hot,
        lambda logits: _cut(_penalise(logits, sampling, history, ahead) / hot, sampling),
        logits,
    )


def noise(keys: Array, positions: Array, vocabulary: int, sampling: Sampling) -> Array:
    """Standard Gumbel noise `[B, A, V]` float32, a function of a sequence's key and position alone.

    Zero for greedy sequences, and not computed when all of them are.

    Args:
      keys: `[B]` typed keys, one a sequence.
      positions: `[B, A]`.
    """

    def draw() -> Array:
        one = functools.partial(gumbel, size=vocabulary)
        drawn = jax.vmap(jax.vmap(one, (None, 0)))(keys, positions)
        return jnp.where(sampling.temperature[:, None, None] > 0, drawn, 0.0)

    def nothing() -> Array:
        return jnp.zeros((*positions.shape, vocabulary), jnp.float32)

    return jax.lax.cond(jnp.any(sampling.temperature > 0), draw, nothing)


def pick(warped: Array, noise: Array) -> Array:
    """The chosen token: `[..., V]` warped logits and noise -> `[...]` int32."""
    return first_best(warped + noise)


def first_best(scores: Array) -> Array:
    """The token with the best of `[..., V]` scores, the first of several: `[...]` int32.

    Two plain reductions: on CPU XLA makes vectors of these, and none of the one over pairs that
    `argmax` is.
    """
    tokens = jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
    # Not `>=`: where a score is no number this is token 0, and not none.
    best = ~(scores < scores.max(axis=-1, keepdims=True))
    return jnp.where(best, tokens, scores.shape[-1]).min(axis=-1)


def _bare(sampling: Sampling) -> Array:
    """Whether no row asks for more than a temperature."""
    return ~(jnp.any(_penalised(sampling)) | jnp.any(_is_cut(sampling)))


def _penalised(sampling: Sampling) -> Array:
    p = sampling.penalties
    return (p.repetition != 1) | (p.presence != 0) | (p.frequency != 0) | (p.minimum > 0)


def _is_cut(sampling: Sampling) -> Array:
    return (sampling.top_k != EVERYTHING) | (sampling.top_p < 1) | (sampling.min_p > 0)


def _penalise(logits: Array, sampling: Sampling, history: History, ahead: Ahead | None) -> Array:
    return jax.lax.cond(
        jnp.any(_penalised(sampling)),
        lambda logits: penalise(logits, sampling.penalties, sampling.stops, history, ahead),
        lambda logits: logits,
        logits,
    )


def _cut(logits: Array, sampling: Sampling) -> Array:
    for wanted, keep, limit in (
        (sampling.top_k != EVERYTHING, keep_top_k, sampling.top_k),
        (sampling.top_p < 1, keep_top_p, sampling.top_p),
        (sampling.min_p > 0, keep_min_p, sampling.min_p),
    ):
        logits = jax.lax.cond(jnp.any(wanted), keep, lambda logits, _: logits, logits, limit)
    return logits


def _add_bias(logits: Array, sampling: Sampling) -> Array:
    # A negative index would count from the end.
    tokens = jnp.where(sampling.biased < 0, logits.shape[-1], sampling.biased)
    add = jax.vmap(lambda row, t, b: row.at[:, t].add(b[None], mode="drop"))
    return add(logits, tokens, sampling.bias)


def _spread(
    batch: int,
    name: str,
    values: Any,
    dtype: type,
    valid: Callable[[Any], bool],
    allowed: str,
) -> Array:
    """One value for every sequence, or one for each, checked: `[batch]`."""
    given = np.asarray(values)
    if given.ndim and given.shape != (batch,):
        raise ValueError(f"{name}={values}: one value, or {batch} of them, one a sequence")
    for value in given.reshape(-1).tolist():
        # As it was given, and as it is once it is rounded to the dtype.
        if not (_holds(dtype, value) and valid(value) and valid(dtype(value))):
            raise ValueError(f"{name}={value}: {allowed}")
    return jnp.asarray(np.broadcast_to(given.astype(dtype), (batch,)))


def _holds(dtype: type, value: float) -> bool:
    """Whether a number lies between the ends of the dtype and is as whole, or is none."""
    whole = np.issubdtype(dtype, np.integer)
    if whole and (not math.isfinite(value) or value != round(value)):
        return False
    limits = np.iinfo(dtype) if whole else np.finfo(dtype)
    return not math.isfinite(value) or float(limits.min) <= value <= float(limits.max)


def _biases(
    batch: int,
    bias: Mapping[int, float] | Sequence[Mapping[int, float]] | None,
    vocabulary: int | None,
) -> tuple[Array, Array]:
    """Tokens and what is added to them, `[batch, E]` each."""
    rows = [bias or {}] * batch if bias is None or isinstance(bias, Mapping) else list(bias)
    if len(rows) != batch:
        raise ValueError(f"bias of {len(rows)} rows: one for all, or {batch}, one a sequence")
    if any(rows) and vocabulary is None:
        raise ValueError("bias is given without vocabulary=: it says which tokens there are")
    tokens = np.full((batch, max(map(len, rows))), NO_TOKEN, np.int32)
    values = np.zeros(tokens.shape, np.float32)
    for index, row in enumerate(rows):
        for place, (token, value) in enumerate(row.items()):
            if not (0 <= token < vocabulary and token == int(token)):
                raise ValueError(f"bias of token {token}: tokens lie in 0..{vocabulary - 1}")
            if np.isnan(value) or not _holds(np.float32, value) or value == np.inf:
                raise ValueError(f"bias of {value} for token {token}: must be a number or -inf")
            tokens[index, place], values[index, place] = token, value
    return jnp.asarray(tokens), jnp.asarray(values)

"""How a token is chosen: process the logits, add the position's noise, take the best token.

The token at position t of a sequence is `argmax(process_logits(logits) + sample_noise(key, t))`,
whoever asks: plain decoding, a node of a candidate tree, or a draft that reads the same noise.
Adding Gumbel noise to log-probabilities and taking the best token samples from the distribution
(the Gumbel-max trick).
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

from jspec.core.filters import KEEP_ALL, keep_min_p, keep_top_k, keep_top_p
from jspec.core.penalties import TokenCounts, TreeContext, apply_penalties
from jspec.core.threefry import gumbel

NO_TOKEN = -1
# Lists of stop tokens and of biases are filled up to a multiple of this, so that lists of a few
# lengths share a compiled program.
LIST_BUCKET = 4
LARGEST = np.iinfo(np.int32).max
# Below the first float32 cannot tell tokens apart that are worth telling apart, and draws are
# greedy; above the second all tokens are as likely.
LEAST_TEMPERATURE, MOST_TEMPERATURE = 1e-5, 1e6
# Logits keep their digits beside anything up to this that is added to them, and stay finite
# whatever up to the second they are multiplied with.
MOST_ADDED, MOST_SCALED = 1000.0, 1e6
ADDED = f"must be a number in -{MOST_ADDED:g}..{MOST_ADDED:g}"
# XLA takes smaller numbers for 0 on some devices.
SMALLEST = float(np.finfo(np.float32).tiny)


@struct.dataclass
class SamplingParams:
    """How each sequence samples, and which tokens end it. One compiled program serves all values,
    with biases and without them one each.

    >>> SamplingParams.create(2, temperature=[0.0, 0.8], top_p=0.95, stop_token_ids=[2])

    Attributes:
      temperature: `[B]` float32, 0 for greedy, at most 1e6; less than 1e-5 is greedy too.
      top_k: `[B]` int32, keep the k best tokens; 0 keeps all.
      top_p: `[B]` float32, keep the smallest set of best tokens with at least this mass.
      min_p: `[B]` float32, keep tokens at least this many times as likely as the best; 0 keeps all.
      repetition_penalty: `[B]` float32; logits of tokens in the prompt or in the generated text
        are divided by it where they are positive and multiplied where they are not; 1 changes
        nothing; in 1e-6..1e6.
      presence_penalty, frequency_penalty: `[B]` float32, subtracted from the logits of a generated
        token, once or for each time; in -1000..1000.
      min_new_tokens: `[B]` int32, tokens to generate before a stop token may come.
      bias_token_ids, logit_bias: `[B, E]` tokens, and what is added to their logits, at most 1000;
        -1000 and less forbids a token. -1 is no token.
      stop_token_ids: `[B, E]` tokens that end a text; -1 is no token.
    """

    temperature: Array
    top_k: Array
    top_p: Array
    min_p: Array
    repetition_penalty: Array
    presence_penalty: Array
    frequency_penalty: Array
    min_new_tokens: Array
    bias_token_ids: Array
    logit_bias: Array
    stop_token_ids: Array

    @classmethod
    def create(
        cls,
        batch: int,
        *,
        temperature: float | Sequence[float] = 0.0,
        top_k: int | Sequence[int] = KEEP_ALL,
        top_p: float | Sequence[float] = 1.0,
        min_p: float | Sequence[float] = 0.0,
        repetition_penalty: float | Sequence[float] = 1.0,
        presence_penalty: float | Sequence[float] = 0.0,
        frequency_penalty: float | Sequence[float] = 0.0,
        min_new_tokens: int | Sequence[int] = 0,
        logit_bias: Mapping[int, float] | Sequence[Mapping[int, float]] | None = None,
        stop_token_ids: Sequence[int] = (),
        vocab_size: int | None = None,
    ) -> "SamplingParams":
        """Parameters for `batch` sequences, from one value for all of them or one for each.

        Args:
          logit_bias: what to add to the logits of tokens, which must be below `vocab_size`.

        Raises `ValueError` for a value outside its range.
        """
        if batch < 1:
            raise ValueError(f"batch={batch}: at least one sequence")
        if isinstance(stop_token_ids, int) or any(abs(token) > LARGEST for token in stop_token_ids):
            raise ValueError(f"stop_token_ids={stop_token_ids}: a list of tokens that end a text")
        spread = functools.partial(_broadcast, batch)
        bias_token_ids, added = _read_bias(batch, logit_bias, vocab_size)
        stops = np.full(_bucket(max(len(stop_token_ids), 1)), NO_TOKEN, np.int32)
        stops[: len(stop_token_ids)] = stop_token_ids
        return cls(
            temperature=spread(
                "temperature",
                temperature,
                np.float32,
                lambda t: 0 <= t <= MOST_TEMPERATURE,
                f"must be 0 (greedy) or a positive number of at most {MOST_TEMPERATURE:g}",
                least=LEAST_TEMPERATURE,
            ),
            top_k=spread(
                "top_k", top_k, np.int32, lambda k: k >= 0, "must be 0 (all) or a whole number"
            ),
            top_p=spread(
                "top_p",
                top_p,
                np.float32,
                lambda p: 0 < p <= 1,
                f"must be in (0, 1], and at least {SMALLEST:.2g}",
            ),
            min_p=spread("min_p", min_p, np.float32, lambda p: 0 <= p <= 1, "must be in [0, 1]"),
            repetition_penalty=spread(
                "repetition_penalty",
                repetition_penalty,
                np.float32,
                lambda r: bool(np.float32(1 / MOST_SCALED) <= np.float32(r) <= MOST_SCALED),
                f"must be a positive number in {1 / MOST_SCALED:g}..{MOST_SCALED:g}; 1 changes "
                "nothing",
            ),
            presence_penalty=spread(
                "presence_penalty", presence_penalty, np.float32, _may_be_added, ADDED
            ),
            frequency_penalty=spread(
                "frequency_penalty", frequency_penalty, np.float32, _may_be_added, ADDED
            ),
            min_new_tokens=spread(
                "min_new_tokens",
                min_new_tokens,
                np.int32,
                lambda n: n >= 0,
                "must be a whole number of tokens",
            ),
            bias_token_ids=bias_token_ids,
            logit_bias=added,
            stop_token_ids=jnp.asarray(np.broadcast_to(stops, (batch, len(stops)))),
        )


def process_logits(
    logits: Array,
    sampling: SamplingParams,
    counts: TokenCounts,
    tree_context: TreeContext | None = None,
) -> Array:
    """Logits of the sampled distribution: scaled by the temperature, `-inf` if filtered out.

    In the order of vLLM and transformers: bias, penalties, temperature, top-k, top-p, min-p. Rows
    of temperature 0 are not divided. What no row asks for is not computed.

    Args:
      logits: `[B, N, V]` float32.
      counts: the tokens up to the root of a tree, the root included.
      tree_context: the draft tokens above each node; None in plain decoding.
    """
    if sampling.bias_token_ids.shape[1]:
        logits = _add_bias(logits, sampling)
    scale = jnp.where(sampling.temperature > 0, sampling.temperature, 1.0)[:, None, None]

    def penalise_and_filter(logits: Array) -> Array:
        return _filter(_penalise(logits, sampling, counts, tree_context) / scale, sampling)

    return jax.lax.cond(
        _only_temperature(sampling), lambda logits: logits / scale, penalise_and_filter, logits
    )


def sample_noise(keys: Array, positions: Array, vocab_size: int, sampling: SamplingParams) -> Array:
    """Standard Gumbel noise `[B, A, V]` float32, a function of a sequence's key and position alone.

    Zero for greedy sequences, and not computed when all of them are.

    Args:
      keys: `[B]` typed keys, one a sequence.
      positions: `[B, A]`.
    """

    def draw() -> Array:
        one = functools.partial(gumbel, size=vocab_size)
        drawn = jax.vmap(jax.vmap(one, (None, 0)))(keys, positions)
        return jnp.where(sampling.temperature[:, None, None] > 0, drawn, 0.0)

    def nothing() -> Array:
        return jnp.zeros((*positions.shape, vocab_size), jnp.float32)

    return jax.lax.cond(jnp.any(sampling.temperature > 0), draw, nothing)


def make_keys(seed: int | Sequence[int], count: int) -> Array:
    """`[count]` typed keys from one seed for all, or one for each."""
    seeds = np.asarray(list(seed) if isinstance(seed, range) else seed)
    if seeds.ndim and seeds.shape != (count,):
        raise ValueError(f"seed={seed}: one number, or {count}, one a prompt")
    for one in seeds.reshape(-1).tolist():
        if not (isinstance(one, int) and 0 <= one < 2**32):
            raise ValueError(f"seed={one}: must be a whole number in 0..{2**32 - 1}")
    keys = [
        jax.random.key(int(one), impl="threefry2x32") for one in np.broadcast_to(seeds, (count,))
    ]
    return jnp.stack(keys)


def pick_token(logits: Array, noise: Array) -> Array:
    """The sampled token: `[..., V]` processed logits and noise -> `[...]` int32."""
    return first_best(logits + noise)


def first_best(scores: Array) -> Array:
    """The token with the best of `[..., V]` scores, the first of several: `[...]` int32.

    Two plain reductions: XLA vectorises these on CPU, and not the one over pairs that `argmax` is.
    """
    tokens = jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
    # Not `>=`: where a score is NaN this is token 0, and not none.
    best = ~(scores < scores.max(axis=-1, keepdims=True))
    return jnp.where(best, tokens, scores.shape[-1]).min(axis=-1)


def are_finite(logits: Array, processed: Array | None = None) -> Array:
    """Whether a token can be chosen from `[..., V]` logits, and from what processing makes of them:
    `[...]` bool. The best of them is a number; others may be `-inf`."""
    chosen = logits if processed is None else processed
    # Not `max` alone: where XLA vectorises it, on CPU, it passes over NaN.
    return jnp.isfinite(jnp.where(logits < jnp.inf, chosen, jnp.inf).max(axis=-1))


def _only_temperature(sampling: SamplingParams) -> Array:
    """Whether no row asks for more than a temperature."""
    return ~(jnp.any(_is_penalised(sampling)) | jnp.any(_is_filtered(sampling)))


def _is_penalised(sampling: SamplingParams) -> Array:
    return (
        (sampling.repetition_penalty != 1)
        | (sampling.presence_penalty != 0)
        | (sampling.frequency_penalty != 0)
        | (sampling.min_new_tokens > 0)
    )


def _is_filtered(sampling: SamplingParams) -> Array:
    return (sampling.top_k != KEEP_ALL) | (sampling.top_p < 1) | (sampling.min_p > 0)


def _penalise(
    logits: Array,
    sampling: SamplingParams,
    counts: TokenCounts,
    tree_context: TreeContext | None,
) -> Array:
    def penalise(logits: Array) -> Array:
        return apply_penalties(
            logits,
            counts,
            tree_context,
            repetition=sampling.repetition_penalty,
            presence=sampling.presence_penalty,
            frequency=sampling.frequency_penalty,
            min_new_tokens=sampling.min_new_tokens,
            stop_token_ids=sampling.stop_token_ids,
        )

    return jax.lax.cond(jnp.any(_is_penalised(sampling)), penalise, lambda logits: logits, logits)


def _filter(logits: Array, sampling: SamplingParams) -> Array:
    for wanted, keep, limit in (
        (sampling.top_k != KEEP_ALL, keep_top_k, sampling.top_k),
        (sampling.top_p < 1, keep_top_p, sampling.top_p),
        (sampling.min_p > 0, keep_min_p, sampling.min_p),
    ):
        logits = jax.lax.cond(jnp.any(wanted), keep, lambda logits, _: logits, logits, limit)
    return logits


def _add_bias(logits: Array, sampling: SamplingParams) -> Array:
    # A negative index would count from the end.
    tokens = jnp.where(sampling.bias_token_ids < 0, logits.shape[-1], sampling.bias_token_ids)
    add = jax.vmap(lambda row, t, b: row.at[:, t].add(b[None], mode="drop"))
    return add(logits, tokens, sampling.logit_bias)


def _broadcast(
    batch: int,
    name: str,
    values: Any,
    dtype: type,
    valid: Callable[[Any], bool],
    allowed: str,
    least: float = SMALLEST,
) -> Array:
    """One for every sequence, or one for each, checked: `[batch]`; less than `least` is 0."""

    def rounded(value: Any) -> Any:
        return np.where(np.abs(value) < least, 0, value).astype(dtype)

    given = np.asarray(values)
    if given.ndim and given.shape != (batch,):
        raise ValueError(f"{name}={values}: one value, or {batch} of them, one a sequence")
    for value in given.reshape(-1).tolist():
        # As it was given, and as it is once it is rounded.
        number = isinstance(value, int | float)
        if not (number and _representable(dtype, value) and valid(value) and valid(rounded(value))):
            raise ValueError(f"{name}={value}: {allowed}")
    return jnp.asarray(np.broadcast_to(rounded(given), (batch,)))


def _may_be_added(value: float) -> bool:
    return abs(value) <= MOST_ADDED


def _representable(dtype: type, value: float) -> bool:
    """Whether a number is within the range of the dtype and as whole, or is not finite."""
    whole = np.issubdtype(dtype, np.integer)
    if whole and (not math.isfinite(value) or value != round(value)):
        return False
    limits = np.iinfo(dtype) if whole else np.finfo(dtype)
    return not math.isfinite(value) or float(limits.min) <= value <= float(limits.max)


def _bucket(count: int) -> int:
    """`count` rounded up to a multiple of `LIST_BUCKET`."""
    return -(-count // LIST_BUCKET) * LIST_BUCKET


def _read_bias(
    batch: int,
    logit_bias: Mapping[int, float] | Sequence[Mapping[int, float]] | None,
    vocab_size: int | None,
) -> tuple[Array, Array]:
    """Tokens and what is added to them, `[batch, E]` each."""
    if logit_bias is None or isinstance(logit_bias, Mapping):
        rows: list[Mapping[int, float]] = [logit_bias or {}] * batch
    else:
        rows = list(logit_bias)
    if len(rows) != batch:
        raise ValueError(f"logit_bias of {len(rows)} rows: one for all, or {batch}, one a sequence")
    if vocab_size is None:
        if any(rows):
            raise ValueError(
                "logit_bias is given without vocab_size=: it says which tokens there are"
            )
        vocab_size = 0
    tokens = np.full((batch, _bucket(max(map(len, rows)))), NO_TOKEN, np.int32)
    values = np.zeros(tokens.shape, np.float32)
    for index, row in enumerate(rows):
        for place, (token, value) in enumerate(row.items()):
            if not (0 <= token < vocab_size and token == int(token)):
                raise ValueError(f"logit_bias of token {token}: tokens are 0..{vocab_size - 1}")
            if not value <= MOST_ADDED:
                raise ValueError(
                    f"logit_bias of {value} for token {token}: must be -inf, which forbids it, or "
                    f"a number of at most {MOST_ADDED:g}"
                )
            tokens[index, place] = token
            values[index, place] = value if value > -MOST_ADDED else -np.inf
        if vocab_size and np.sum(values[index] == -np.inf) == vocab_size:
            raise ValueError(f"logit_bias forbids all {vocab_size} tokens: leave one")
    return jnp.asarray(tokens), jnp.asarray(values)

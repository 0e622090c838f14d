"""Whether a method that writes other texts than plain decoding draws them from the same
distribution: a test for any model, the bias of one with few tokens, and what the target thinks of
the text."""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jspec.bench.suite import Method
from jspec.core.prompts import PaddedPrompts, pad_prompts
from jspec.core.sampling import SamplingParams
from jspec.decode import GenerationOutput, generate
from jspec.models.protocol import Model, Params
from jspec.models.teacher_forcing import model_logits

ROWS, PIECES = 64, 32
DEPTH, BINS = 3, 4
SMALLEST_P = 1e-4
"""Below it a distribution counts as different: a right rule falls there once in ten thousand."""
ENUMERABLE = 32  # a vocabulary of which every two tokens are contexts of one batch
REPEATS = 20


@dataclass(frozen=True)
class Bias:
    """How far the first three tokens of `draws` texts are from the target's distribution.

    Attributes:
      variation: total variation between the target's distribution and the texts.
      by_chance: what as many draws of the distribution itself show on average.
    """

    draws: int
    variation: float
    by_chance: float


@dataclass(frozen=True)
class CrossEntropy:
    """Nats per token, on average, under the target at temperature 1: of what a `method` wrote, and
    of what `plain` decoding wrote after the same prompts."""

    method: float
    plain: float


def first_tokens_p_value(
    method: Method,
    target: Model,
    params: Params,
    prompt: list[int],
    *,
    temperature: float,
    seed: int,
) -> float:
    """The p-value of a chi-square test of the first tokens of many texts after `prompt`, jointly.

    A token's place is the probability of the likelier ones under the target after the tokens before
    it, and a random part of its own. Under the right distribution places are uniform and
    independent of each other (Rosenblatt 1952), so all cells of a grid of three expect as many.
    """
    place = jax.jit(functools.partial(_places, target=target))
    counts = np.zeros(BINS**DEPTH)
    drawn = first_tokens(
        method, target, params, prompt,
        temperature=temperature, seed=seed, pieces=PIECES, rows=ROWS,
    )  # fmt: skip
    for keys, tokens in drawn:
        text = np.concatenate([np.tile(prompt, (ROWS, 1)), tokens], axis=1)
        places, possible = place(params, text, jax.random.fold_in(keys[0], 1), temperature)
        if not np.all(possible):
            return 0.0
        cells = np.minimum(BINS * np.asarray(places), BINS - 1).astype(int)
        np.add.at(counts, np.ravel_multi_index(cells.T, (BINS,) * DEPTH), 1)
    expected = counts.sum() / counts.size
    statistic = np.sum((counts - expected) ** 2 / expected)
    return float(jax.scipy.stats.chi2.sf(statistic, counts.size - 1))


def first_tokens(
    method: Method,
    target: Model,
    params: Params,
    prompt: list[int],
    *,
    temperature: float,
    seed: int,
    pieces: int,
    rows: int,
) -> Iterator[tuple[Array, Array]]:
    """The first tokens `[rows, DEPTH]` of many texts after `prompt`, in `pieces`, and the keys
    `[rows]` of each."""
    batch = pad_prompts(
        [prompt] * rows, context_length=target.config.max_position_embeddings, max_new_tokens=DEPTH
    )
    how = SamplingParams.create(rows, temperature=temperature)
    for keys in jax.random.split(jax.random.key(seed), (pieces, rows)):
        text = generate(
            params,
            method.draft,
            batch,
            keys,
            how,
            target=method.reading(target),
            drafter=method.drafter,
            rule=method.rule,
            max_new_tokens=DEPTH,
        )
        yield keys, text.tokens[:, :DEPTH]


def bias(
    method: Method,
    target: Model,
    params: Params,
    prompt: list[int],
    *,
    temperature: float,
    seed: int,
    pieces: int = 4,
    rows: int = 5000,
) -> Bias:
    """The distribution of the first three tokens after `prompt`, by `pieces` batches of `rows`
    texts.

    Raises `ValueError` for a vocabulary that is too large to enumerate.
    """
    probs = joint_probs(target, params, prompt, temperature=temperature)
    counts = np.zeros(probs.shape)
    drawn = first_tokens(
        method, target, params, prompt,
        temperature=temperature, seed=seed, pieces=pieces, rows=rows,
    )  # fmt: skip
    for _, tokens in drawn:
        np.add.at(counts, tuple(np.asarray(tokens).T), 1)
    draws = pieces * rows
    exact = np.random.default_rng(seed).multinomial(draws, probs.ravel(), REPEATS)
    by_chance = np.mean([total_variation(row, probs.ravel()) for row in exact])
    return Bias(draws, total_variation(counts, probs), float(by_chance))


def joint_probs(
    target: Model, params: Params, prompt: list[int], *, temperature: float
) -> np.ndarray:
    """`[V, V, V]` float64, of the next three tokens: from the logits of every context."""
    vocabulary = target.config.vocab_size
    if vocabulary > ENUMERABLE:
        raise ValueError(
            f"target: a vocabulary of {vocabulary} tokens has too many contexts to enumerate: give "
            f"a model of at most {ENUMERABLE}, or use first_tokens_p_value"
        )
    if temperature <= 0:
        raise ValueError(
            f"temperature={temperature}: nothing is drawn at 0: give more, or use divergence"
        )
    pairs = itertools.product(range(vocabulary), repeat=DEPTH - 1)
    texts = np.array([[*prompt, *pair] for pair in pairs], np.int32)
    logits = (
        np.asarray(model_logits(params, texts, model=target)[:, -DEPTH:], np.float64) / temperature
    )
    probs = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probs = (probs / probs.sum(axis=-1, keepdims=True)).reshape(
        *[vocabulary] * 2, DEPTH, vocabulary
    )
    first, second, third = probs[0, 0, 0], probs[:, 0, 1], probs[:, :, 2]
    return first[:, None, None] * second[:, :, None] * third


def total_variation(counts: np.ndarray, probs: np.ndarray) -> float:
    """Between what was counted and a distribution of the same shape."""
    return float(np.abs(counts / counts.sum() - probs).sum() / 2)


def cross_entropy(
    target: Model,
    params: Params,
    batch: PaddedPrompts,
    text: GenerationOutput,
    plain: GenerationOutput,
) -> CrossEntropy:
    """Nats per token of two batches of texts that continue the same prompts."""

    def mean(text: GenerationOutput) -> float:
        nats = np.asarray(_nats(params, batch, text.tokens, text.length, target=target))
        return -float(nats.sum() / np.asarray(text.length).sum())

    return CrossEntropy(mean(text), mean(plain))


@functools.partial(jax.jit, static_argnames=("target",))
def _nats(
    params: Params, batch: PaddedPrompts, tokens: Array, length: Array, *, target: Model
) -> Array:
    """`[B]` the log-probability of the first `length` `[B]` of `tokens` `[B, T]` after prompts."""

    def one(row: tuple[Array, Array, Array, Array]) -> Array:
        prompt, start, text, count = row
        whole = jnp.pad(prompt, (0, len(text)))
        whole = jax.lax.dynamic_update_slice_in_dim(whole, text, start, 0)
        logits = model_logits(params, whole[None], model=target)[0]
        logits = jax.lax.dynamic_slice_in_dim(logits, start - 1, len(text))
        nats = jnp.take_along_axis(jax.nn.log_softmax(logits), text[:, None], axis=1)[:, 0]
        here = jnp.arange(len(text), dtype=jnp.int32) < count
        return jnp.where(here, nats, 0.0).sum()

    # One text at a time: the logits of all at once take gigabytes.
    return jax.lax.map(one, (jnp.asarray(batch.tokens), jnp.asarray(batch.length), tokens, length))


def _places(
    params: Params, text: Array, key: Array, temperature: Array, *, target: Model
) -> tuple[Array, Array]:
    """Places `[B, DEPTH]` of the last tokens of `[B, T]` in their distributions, and whether the
    target can write them at all."""
    rows, length = text.shape
    causal = jnp.tril(jnp.ones((length, length), bool))
    positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), text.shape)
    # Logits at the last places alone: those of whole texts take gigabytes.
    hidden = target.forward(params, text, positions, causal).hidden[:, -DEPTH - 1 : -1]
    probs = jax.nn.softmax(target.logits(params, hidden) / temperature)
    tokens = text[:, -DEPTH:, None]
    own = jnp.take_along_axis(probs, tokens, axis=2)
    first = jnp.arange(probs.shape[-1], dtype=jnp.int32)[None, None] < tokens
    likelier = jnp.where((probs > own) | ((probs == own) & first), probs, 0).sum(axis=2)
    own = own[..., 0]
    return likelier + own * jax.random.uniform(key, (rows, DEPTH), jnp.float32), own > 0

"""How far a method's text drifts from plain decoding's: in its tokens, its law, its likelihood."""

import functools
import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jspec.bench.drafts import model_logits
from jspec.bench.law import DEPTH, first_tokens
from jspec.bench.suite import Method
from jspec.core.prompts import Prompts
from jspec.decode import Generation
from jspec.models.protocol import Model, Params

ENUMERABLE = 32  # a vocabulary of which every two tokens are contexts of one batch
REPEATS = 20


@dataclass(frozen=True)
class Parting:
    """Of `texts` the share `equal` to plain decoding's, and of all its tokens the share `shared`
    that stand before a text's first difference. Says something where plain decoding's text is the
    only right one: at temperature 0, or under a rule that keeps the text."""

    texts: int
    equal: float
    shared: float


@dataclass(frozen=True)
class Bias:
    """The total variation between the target's law of three tokens and `draws` texts, and that
    which as many draws of the law itself show on average."""

    draws: int
    variation: float
    chance: float


@dataclass(frozen=True)
class Likelihood:
    """Nats a token, on average, that the target at temperature 1 gives to what a method wrote, and
    to what plain decoding wrote after the same prompts."""

    written: float
    plain: float


def parting(plain: Generation, other: Generation) -> Parting:
    """Holds the texts of two batches of the same prompts and keys against each other."""
    lengths = np.asarray(plain.length), np.asarray(other.length)
    order = np.arange(plain.tokens.shape[1])
    both = order < np.minimum(*lengths)[:, None]
    same = (np.asarray(plain.tokens) == np.asarray(other.tokens)) & both
    shared = np.cumprod(same, axis=1).sum(axis=1)
    equal = (shared == lengths[0]) & (lengths[0] == lengths[1])
    return Parting(len(shared), float(equal.mean()), float(shared.sum() / lengths[0].sum()))


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
    """The law of the first three tokens after `prompt`, by `pieces` batches of `rows` texts.

    Raises `ValueError` for a vocabulary that is too large to enumerate.
    """
    law = joint_law(target, params, prompt, temperature=temperature)
    counts = np.zeros(law.shape)
    drawn = first_tokens(
        method, target, params, prompt,
        temperature=temperature, seed=seed, pieces=pieces, rows=rows,
    )  # fmt: skip
    for _, tokens in drawn:
        np.add.at(counts, tuple(np.asarray(tokens).T), 1)
    draws = pieces * rows
    right = np.random.default_rng(seed).multinomial(draws, law.ravel(), REPEATS)
    chance = np.mean([total_variation(row, law.ravel()) for row in right])
    return Bias(draws, total_variation(counts, law), float(chance))


def joint_law(
    target: Model, params: Params, prompt: list[int], *, temperature: float
) -> np.ndarray:
    """`[V, V, V]` float64, of the next three tokens: from the logits of every context."""
    vocabulary = target.config.vocabulary
    if vocabulary > ENUMERABLE:
        raise ValueError(
            f"target: a vocabulary of {vocabulary} tokens has too many contexts to enumerate, so "
            f"give a model of at most {ENUMERABLE}, or ask jspec.bench.law"
        )
    if temperature <= 0:
        raise ValueError(
            f"temperature={temperature}: a law is one of draws, so give more than 0, or ask parting"
        )
    pairs = itertools.product(range(vocabulary), repeat=DEPTH - 1)
    texts = np.array([[*prompt, *pair] for pair in pairs], np.int32)
    logits = (
        np.asarray(model_logits(params, texts, model=target)[:, -DEPTH:], np.float64) / temperature
    )
    laws = np.exp(logits - logits.max(axis=-1, keepdims=True))
    laws = (laws / laws.sum(axis=-1, keepdims=True)).reshape(*[vocabulary] * 2, DEPTH, vocabulary)
    first, second, third = laws[0, 0, 0], laws[:, 0, 1], laws[:, :, 2]
    return first[:, None, None] * second[:, :, None] * third


def total_variation(counts: np.ndarray, law: np.ndarray) -> float:
    """Between what was counted and a law of the same shape."""
    return float(np.abs(counts / counts.sum() - law).sum() / 2)


def likelihood(
    target: Model, params: Params, batch: Prompts, written: Generation, plain: Generation
) -> Likelihood:
    """Nats a token of two batches of texts that go on from the same prompts."""

    def mean(text: Generation) -> float:
        nats = np.asarray(_nats(params, batch, text.tokens, text.length, target=target))
        return -float(nats.sum() / np.asarray(text.length).sum())

    return Likelihood(mean(written), mean(plain))


@functools.partial(jax.jit, static_argnames=("target",))
def _nats(params: Params, batch: Prompts, tokens: Array, length: Array, *, target: Model) -> Array:
    """`[B]` the log-probability of the first `length` `[B]` of `tokens` `[B, T]` after prompts."""

    def one(row: tuple[Array, Array, Array, Array]) -> Array:
        prompt, start, text, count = row
        whole = jnp.pad(prompt, (0, len(text)))
        whole = jax.lax.dynamic_update_slice_in_dim(whole, text, start, 0)
        logits = model_logits(params, whole[None], model=target)[0]
        logits = jax.lax.dynamic_slice_in_dim(logits, start - 1, len(text))
        nats = jnp.take_along_axis(jax.nn.log_softmax(logits), text[:, None], axis=1)[:, 0]
        return jnp.where(jnp.arange(len(text)) < count, nats, 0.0).sum()

    # A text at a time: of all at once the logits would take gigabytes.
    return jax.lax.map(one, (jnp.asarray(batch.tokens), jnp.asarray(batch.length), tokens, length))

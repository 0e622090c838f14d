"""Whether a rule that writes other texts than plain decoding writes them by the same law."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jspec.bench.suite import Method
from jspec.core.prompts import prompts
from jspec.core.sampling import sampling
from jspec.decode import generate
from jspec.models.protocol import Model, Params

ROWS, PIECES = 64, 32
DEPTH, BINS = 3, 4
SMALLEST_P = 1e-4
"""Below which a law is called another: a right rule falls there once in ten thousand times."""


def first_tokens_law(
    method: Method,
    target: Model,
    params: Params,
    prompt: list[int],
    *,
    temperature: float,
    seed: int,
) -> float:
    """The p-value of a chi-square test of the first tokens of many texts after `prompt`, jointly.

    A token's place is the probability of the likelier ones under the target's law after the tokens
    before it, and a random part of its own. Under the right law places are uniform and independent
    of each other (Rosenblatt 1952), so all cells of a grid of three expect as many.
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
    batch = prompts([prompt] * rows, context=target.config.context, tokens=DEPTH)
    how = sampling(rows, temperature=temperature)
    for keys in jax.random.split(jax.random.key(seed), (pieces, rows)):
        written = generate(
            params,
            method.draft,
            batch,
            keys,
            how,
            target=method.reading(target),
            drafter=method.drafter,
            rule=method.rule,
            tokens=DEPTH,
        )
        yield keys, written.tokens


def _places(
    params: Params, text: Array, key: Array, temperature: Array, *, target: Model
) -> tuple[Array, Array]:
    """Where the last tokens of `[B, T]` stand in their laws `[B, DEPTH]`, and if they are there."""
    rows, length = text.shape
    causal = jnp.tril(jnp.ones((length, length), bool))
    positions = jnp.broadcast_to(jnp.arange(length), text.shape)
    hidden = target.forward(params, text, positions, causal).hidden[:, -DEPTH - 1 : -1]
    law = jax.nn.softmax(target.logits(params, hidden) / temperature)
    tokens = text[:, -DEPTH:, None]
    own = jnp.take_along_axis(law, tokens, axis=2)
    first = jnp.arange(law.shape[-1])[None, None] < tokens
    likelier = jnp.where((law > own) | ((law == own) & first), law, 0).sum(axis=2)
    own = own[..., 0]
    return likelier + own * jax.random.uniform(key, (rows, DEPTH)), own > 0

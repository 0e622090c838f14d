"""Whether a rule that writes other texts than plain decoding writes them by the same law."""

import jax
import jax.numpy as jnp
import numpy as np

from jspec.bench.agreement import logits_at
from jspec.bench.suite import Method
from jspec.decode import generate
from jspec.models.protocol import Model, Params
from jspec.penalties import recall
from jspec.ragged import prompts
from jspec.sampling import sampling, warp

ROWS, PIECES = 256, 8
RARE = 5.0
SMALLEST_P = 1e-4
"""Below which a law is called another: a right rule falls there once in ten thousand times."""


def first_token_law(
    method: Method,
    target: Model,
    params: Params,
    prompt: list[int],
    *,
    temperature: float,
    seed: int,
) -> float:
    """The p-value of a chi-square test of the first token of many texts after `prompt` against the
    target's law."""
    batch = prompts([prompt] * ROWS, context=target.config.context, tokens=1)
    how = sampling(ROWS, temperature=temperature)
    counts = np.zeros(target.config.vocabulary)
    for keys in jax.random.split(jax.random.key(seed), (PIECES, ROWS)):
        written = generate(
            params,
            method.draft,
            batch,
            keys,
            how,
            target=target,
            drafter=method.drafter,
            rule=method.rule,
            tokens=1,
        )
        np.add.at(counts, np.asarray(written.tokens)[:, 0], 1)
    return _p_value(counts, _law(target, params, prompt, temperature))


def _law(target: Model, params: Params, prompt: list[int], temperature: float) -> np.ndarray:
    tokens, length = jnp.array([prompt]), jnp.array([len(prompt)])
    logits = logits_at(params, tokens, len(prompt) - 1, target=target)
    history = recall(tokens, length, length, vocabulary=target.config.vocabulary)
    warped = warp(logits, sampling(1, temperature=temperature), history)
    return np.asarray(jax.nn.softmax(warped))[0, 0]


def _p_value(counts: np.ndarray, law: np.ndarray) -> float:
    """Of `counts` `[V]` under `law` `[V]`; tokens that expect few draws are counted as one."""
    expected = law * counts.sum()
    rare = expected < RARE
    expected = np.append(expected[~rare], expected[rare].sum())
    seen = np.append(counts[~rare], counts[rare].sum())
    possible = expected > 0
    if seen[~possible].any():
        return 0.0
    statistic = np.sum((seen[possible] - expected[possible]) ** 2 / expected[possible])
    freedom = possible.sum() - 1
    return float(jax.scipy.stats.chi2.sf(statistic, freedom)) if freedom else 1.0

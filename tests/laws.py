"""The exact law of three tokens by enumeration, many draws of them, and a chi-square between."""

import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy import stats
from texts import NO_STOPS, sharp, teach

from jspec import (
    Drafter,
    Generation,
    Growth,
    ModelConfig,
    Rule,
    SmallModelDrafter,
    Tree,
    autoregress,
    generate,
    prompts,
    sampling,
    transformer,
)
from jspec.draft.feature_head import FeatureDrafter
from jspec.models.eagle3 import eagle3
from jspec.models.heads import HeadParams
from jspec.models.protocol import Params
from jspec.models.transformer import observed
from jspec.verify import coupled

DRAWS = 20_000
# A batch; all draws at once would take gigabytes.
ROWS = 5_000
PROMPT = [3]
SMALLEST_P = 1e-3
PAIRS = Tree.branching((2, 2))

enumerable = transformer(
    ModelConfig(
        vocabulary=6,
        width=8,
        feedforward=8,
        layers=1,
        heads=1,
        kv_heads=1,
        channels=8,
        context=64,
    )
)


@functools.cache
def enumerable_params() -> Params:
    return sharp(jax.jit(enumerable.init)(jax.random.key(41)), 2.0)


@functools.cache
def unrelated_params() -> Params:
    return jax.jit(enumerable.init)(jax.random.key(44))


def small_model(tree: Tree) -> SmallModelDrafter:
    return SmallModelDrafter(enumerable, tree)


def head_with_few_tokens(tree: Tree) -> FeatureDrafter:
    """EAGLE-3's, with four of the six tokens."""
    head = eagle3(enumerable.config, layers=(0, 1), draft_vocabulary=4)
    return FeatureDrafter(head, observed(enumerable, head.layers), tree)


@functools.cache
def head_params() -> HeadParams:
    head = head_with_few_tokens(PAIRS).head
    own = sharp(jax.jit(head.init)(jax.random.key(48)), 2.0)
    # Its tokens are 0, 2, 3 and 5.
    return HeadParams(own, enumerable_params(), jnp.array([0, 1, 1, 2]))


def plain_draws(seed: int, decode: Callable = autoregress, **how: float) -> Generation:
    """Three tokens after the same prompt in all rows, each row with a key of its own."""

    def piece(keys: Array) -> Generation:
        return decode(
            enumerable_params(),
            prompts([PROMPT] * ROWS, context=enumerable.config.context, tokens=3),
            keys,
            sampling(ROWS, stops=NO_STOPS, **how),
            target=enumerable,
            tokens=3,
        )

    return _in_pieces(piece, seed)


def speculative_draws(
    seed: int,
    decode: Callable = generate,
    *,
    rule: Rule = coupled,
    tree: Tree | Growth = PAIRS,
    draft: Callable[[], Params] = unrelated_params,
    kind: Callable[[Tree | Growth], Drafter] = small_model,
    **how: float,
) -> Generation:
    """The same by a tree of guesses, of an unrelated draft if none is given.

    Args:
      kind: makes the drafter of a tree.
    """
    drafter = kind(tree)
    # What shows what the drafter reads, or the one that stops early.
    shown = getattr(getattr(drafter, "drafter", drafter), "target", enumerable)

    def piece(keys: Array) -> Generation:
        return decode(
            enumerable_params(),
            draft(),
            prompts([PROMPT] * ROWS, context=enumerable.config.context, tokens=3),
            keys,
            sampling(ROWS, stops=NO_STOPS, **how),
            target=shown,
            drafter=drafter,
            rule=rule,
            tokens=3,
        )

    return _in_pieces(piece, seed)


def counts_of(written: Generation) -> np.ndarray:
    """`[V, V, V]` how often each three tokens were written."""
    counts = np.zeros((enumerable.config.vocabulary,) * 3)
    np.add.at(counts, tuple(np.asarray(written.tokens).T), 1)
    return counts


def pairs_of(written: Generation) -> np.ndarray:
    """`[V, V]` how often two neighbours in the batch began with each two tokens."""
    counts = np.zeros((enumerable.config.vocabulary,) * 2)
    np.add.at(counts, tuple(np.asarray(written.tokens)[:, 0].reshape(-1, 2).T), 1)
    return counts


def pair_law(**how: float) -> np.ndarray:
    """`[V, V]` the law of the first tokens of two texts that do not know of each other."""
    logits = teach(enumerable_params(), np.array([PROMPT]), model=enumerable)[0, -1]
    law = next_token_law(logits, **how)
    return law[:, None] * law


def next_token_law(
    logits: np.ndarray,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition: float = 1.0,
    presence: float = 0.0,
    frequency: float = 0.0,
    written: Sequence[int] = (),
) -> np.ndarray:
    """`[V]` probabilities, by sorting, in float64: penalties, temperature, top-k, top-p, min-p."""
    logits = np.array(logits, np.float64)
    said = sorted({*PROMPT, *written})
    logits[said] = np.where(logits[said] > 0, logits[said] / repetition, logits[said] * repetition)
    for token in set(written):
        logits[token] -= presence + frequency * list(written).count(token)
    if temperature == 0:
        return np.eye(len(logits))[logits.argmax()]
    logits = logits / temperature
    if top_k:
        logits = np.where(logits >= np.sort(logits)[::-1][:top_k][-1], logits, -np.inf)
    law = np.exp(logits - logits.max())
    law /= law.sum()
    if top_p < 1:
        best = np.sort(law)[::-1]
        last = best[np.searchsorted(np.cumsum(best), top_p)]
        law = np.where(law >= last, law, 0.0)
    law = np.where(law >= min_p * law.max(), law, 0.0)
    return law / law.sum()


def joint_law(**how: float) -> np.ndarray:
    """`[V, V, V]` the exact law of the next three tokens, from the logits of every context."""
    vocabulary = enumerable.config.vocabulary
    contexts = [[*PROMPT, *two] for two in itertools.product(range(vocabulary), repeat=2)]
    logits = np.asarray(teach(enumerable_params(), np.array(contexts), model=enumerable))
    logits = logits.reshape(vocabulary, vocabulary, *logits.shape[1:])
    law = np.zeros((vocabulary,) * 3)
    first = next_token_law(logits[0, 0, -3], **how)
    for a in range(vocabulary):
        second = next_token_law(logits[a, 0, -2], written=[a], **how)
        for b in range(vocabulary):
            third = next_token_law(logits[a, b, -1], written=[a, b], **how)
            law[a, b] = first[a] * second[b] * third
    return law


def p_value(counts: np.ndarray, law: np.ndarray) -> float:
    """Of a chi-square test of `counts` against `law`; cells that expect less than 5 are pooled."""
    expected = law.ravel() * counts.sum()
    counts = counts.ravel()
    if counts[expected == 0].any():
        return 0.0
    rare = expected < 5
    expected = np.append(expected[~rare], expected[rare].sum())
    counts = np.append(counts[~rare], counts[rare].sum())
    if len(expected) == 2 and expected[-1] == 0:
        return 1.0  # one outcome alone is possible, and it came
    if expected[-1] == 0:
        expected, counts = expected[:-1], counts[:-1]
    return float(stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue)


def _in_pieces(draw: Callable[[Array], Generation], seed: int) -> Generation:
    keys = jax.random.split(jax.random.key(seed), DRAWS)
    pieces = [draw(keys[first : first + ROWS]) for first in range(0, DRAWS, ROWS)]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *pieces)

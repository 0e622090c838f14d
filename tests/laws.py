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
    DynamicTree,
    GenerationOutput,
    ModelConfig,
    Rule,
    SamplingParams,
    SmallModelDrafter,
    Tree,
    autoregress,
    generate,
    pad_prompts,
    transformer,
)
from jspec.draft.feature_head import FeatureDrafter
from jspec.models.eagle3 import eagle3
from jspec.models.heads import HeadParams
from jspec.models.protocol import Params
from jspec.models.transformer import with_hidden_states
from jspec.verify import coupled

DRAWS = 20_000
# A batch; all draws at once would take gigabytes.
ROWS = 5_000
PROMPT = [3]
HOW = {
    "T=0.3": {"temperature": 0.3},
    "T=1": {"temperature": 1.0},
    "T=2": {"temperature": 2.0},
    "top-k": {"temperature": 1.0, "top_k": 3},
    "top-p": {"temperature": 1.5, "top_p": 0.8},
    "top-k and top-p": {"temperature": 0.7, "top_k": 4, "top_p": 0.9},
    "min-p": {"temperature": 1.5, "min_p": 0.2},
    "penalties": {
        "temperature": 1.0,
        "repetition_penalty": 1.5,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.3,
    },
}
SMALLEST_P = 1e-3
PAIRS = Tree.branching((2, 2))

enumerable = transformer(
    ModelConfig(
        vocab_size=6,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
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
    head = eagle3(enumerable.config, layers=(0, 1), draft_vocab_size=4)
    return FeatureDrafter(head, with_hidden_states(enumerable, head.layers), tree)


@functools.cache
def head_params() -> HeadParams:
    head = head_with_few_tokens(PAIRS).head
    own = sharp(jax.jit(head.init)(jax.random.key(48)), 2.0)
    # Its tokens are 0, 2, 3 and 5.
    return HeadParams(own, enumerable_params(), jnp.array([0, 1, 1, 2]))


def plain_draws(seed: int, decode: Callable = autoregress, **how: float) -> GenerationOutput:
    """Three tokens after the same prompt in all rows, each row with a key of its own."""

    def piece(keys: Array) -> GenerationOutput:
        return decode(
            enumerable_params(),
            pad_prompts(
                [PROMPT] * ROWS,
                context_length=enumerable.config.max_position_embeddings,
                max_new_tokens=3,
            ),
            keys,
            SamplingParams.create(ROWS, stop_token_ids=NO_STOPS, **how),
            target=enumerable,
            max_new_tokens=3,
        )

    return _in_pieces(piece, seed)


def speculative_draws(
    seed: int,
    decode: Callable = generate,
    *,
    rule: Rule = coupled,
    tree: Tree | DynamicTree = PAIRS,
    draft: Callable[[], Params] = unrelated_params,
    kind: Callable[[Tree | DynamicTree], Drafter] = small_model,
    draws: int = DRAWS,
    **how: float,
) -> GenerationOutput:
    """The same along a tree, of an unrelated draft if none is given.

    Args:
      kind: makes the drafter of a tree.
    """
    drafter = kind(tree)
    # What shows what the drafter reads, or the one that stops early.
    shown = getattr(getattr(drafter, "drafter", drafter), "target", enumerable)

    def piece(keys: Array) -> GenerationOutput:
        return decode(
            enumerable_params(),
            draft(),
            pad_prompts(
                [PROMPT] * ROWS,
                context_length=enumerable.config.max_position_embeddings,
                max_new_tokens=3,
            ),
            keys,
            SamplingParams.create(ROWS, stop_token_ids=NO_STOPS, **how),
            target=shown,
            drafter=drafter,
            rule=rule,
            max_new_tokens=3,
        )

    return _in_pieces(piece, seed, draws)


def counts_of(written: GenerationOutput) -> np.ndarray:
    """`[V, V, V]` how often each three tokens were written."""
    counts = np.zeros((enumerable.config.vocab_size,) * 3)
    np.add.at(counts, tuple(np.asarray(written.tokens)[:, :3].T), 1)
    return counts


def pairs_of(written: GenerationOutput) -> np.ndarray:
    """`[V, V]` how often two neighbours in the batch began with each two tokens."""
    counts = np.zeros((enumerable.config.vocab_size,) * 2)
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
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    written: Sequence[int] = (),
) -> np.ndarray:
    """`[V]` probabilities, by sorting, in float64: penalties, temperature, top-k, top-p, min-p."""
    logits = np.array(logits, np.float64)
    said = sorted({*PROMPT, *written})
    logits[said] = np.where(
        logits[said] > 0, logits[said] / repetition_penalty, logits[said] * repetition_penalty
    )
    for token in set(written):
        logits[token] -= presence_penalty + frequency_penalty * list(written).count(token)
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
    vocabulary = enumerable.config.vocab_size
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


def _in_pieces(
    draw: Callable[[Array], GenerationOutput], seed: int, draws: int = DRAWS
) -> GenerationOutput:
    keys = jax.random.split(jax.random.key(seed), draws)
    pieces = [draw(keys[first : first + ROWS]) for first in range(0, draws, ROWS)]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *pieces)

"""The two programs in plain numpy of jspec/verify/README.md do what ours do."""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from laws import (
    PROMPT,
    SMALLEST_P,
    counts_of,
    enumerable,
    enumerable_params,
    joint_law,
    p_value,
    speculative_draws,
    unrelated_params,
)
from scipy import stats
from texts import teach

import jspec
from jspec import SamplingParams, SmallModelDrafter, Tree, autoregress, generate, pad_prompts

pytestmark = pytest.mark.law

CONTEXT, NEW, DRAWS = 24, 12, 8_000


@pytest.fixture(scope="module")
def programs() -> SimpleNamespace:
    """The functions that the page defines."""
    page = (Path(jspec.__file__).parent / "verify" / "README.md").read_text(encoding="utf-8")
    found: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, found)
    return SimpleNamespace(**found)


def logits_of(params) -> Callable[[list[int]], np.ndarray]:
    """A function from a list of tokens to logits `[V]`, as the programs take them."""

    @functools.cache
    def after(tokens: tuple[int, ...]) -> np.ndarray:
        padded = np.zeros((1, CONTEXT), np.int32)
        padded[0, : len(tokens)] = tokens
        return np.asarray(teach(params, padded, model=enumerable)[0, len(tokens) - 1])

    return lambda tokens: after(tuple(tokens))


@pytest.fixture(scope="module")
def target() -> Callable:
    return logits_of(enumerable_params())


@pytest.fixture(scope="module")
def draft() -> Callable:
    return logits_of(unrelated_params())


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.5])
@pytest.mark.parametrize("widths", [(1, 1, 1), (2, 2), (3, 1)], ids=str)
def test_the_coupled_program_writes_our_text_in_as_many_rounds(
    widths, temperature, programs, target, draft
):
    key = jax.random.key(5)

    @functools.cache
    def noise(position: int) -> np.ndarray:
        return np.asarray(jax.random.gumbel(jax.random.fold_in(key, position), (6,)))

    end, rounds = len(PROMPT) + NEW, 0
    plain, tokens = list(PROMPT), list(PROMPT)
    while len(plain) < end:
        plain += programs.plain_round(plain, target, noise, temperature)
    while len(tokens) < end:
        tokens += programs.coupled_round(tokens, target, draft, widths, noise, temperature)
        rounds += 1
    prompts = pad_prompts([PROMPT], context_length=64, max_new_tokens=NEW)
    given = prompts, key[None], SamplingParams.create(1, temperature=temperature)
    drafter = SmallModelDrafter(enumerable, Tree.branching(widths))
    ours = generate(
        enumerable_params(), unrelated_params(), *given,
        target=enumerable, drafter=drafter, rule="coupled", max_new_tokens=NEW,
    )  # fmt: skip
    alone = autoregress(enumerable_params(), *given, target=enumerable, max_new_tokens=NEW)
    expected = ours.tokens[0, :NEW].tolist()
    assert alone.tokens[0, :NEW].tolist() == expected
    assert plain[len(PROMPT) :] == tokens[len(PROMPT) : end] == expected
    assert rounds == ours.num_rounds[0] < NEW


def test_the_rejection_program_has_our_distribution_and_accepts_as_much(programs, target, draft):
    random, depth = np.random.default_rng(0), 2
    texts, rounds = np.zeros((DRAWS, 3), int), np.zeros(DRAWS, int)
    for draw in range(DRAWS):
        tokens = list(PROMPT)
        while len(tokens) < len(PROMPT) + 3:
            tokens += programs.rejection_round(tokens, target, draft, depth, 1.0, random)
            rounds[draw] += 1
        texts[draw] = tokens[len(PROMPT) : len(PROMPT) + 3]
    counts = np.zeros((6,) * 3)
    np.add.at(counts, tuple(texts.T), 1)
    law = joint_law(temperature=1.0)
    ours = speculative_draws(
        7, rule=jspec.verify.token_level, tree=Tree.chain(depth), temperature=1.0
    )
    assert p_value(counts, law) > SMALLEST_P
    assert p_value(counts_of(ours), law) > SMALLEST_P
    # How often one, two or three rounds were needed.
    needed = [np.bincount(each, minlength=4)[1:] for each in (rounds, np.asarray(ours.num_rounds))]
    assert np.all(np.array(needed) > 5)
    assert stats.chi2_contingency(needed).pvalue > SMALLEST_P

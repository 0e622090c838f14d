"""The text follows the target's law: all outcomes of three tokens, by chi-square."""

import numpy as np
import pytest
from laws import (
    SMALLEST_P,
    counts_of,
    joint_law,
    p_value,
    pair_law,
    pairs_of,
    plain_draws,
    speculative_draws,
)

HOW = {
    "T=0.5": {"temperature": 0.5},
    "T=1": {"temperature": 1.0},
    "T=2": {"temperature": 2.0},
    "top-k": {"temperature": 1.0, "top_k": 3},
    "top-p": {"temperature": 1.5, "top_p": 0.8},
    "top-k and top-p": {"temperature": 0.7, "top_k": 4, "top_p": 0.9},
}


@pytest.mark.parametrize("name", HOW)
def test_plain_text_follows_the_law_of_the_target(name):
    written = plain_draws(42, **HOW[name])
    p = p_value(counts_of(written), joint_law(**HOW[name]))
    print(f"{name}: p = {p:.3f}")
    assert p > SMALLEST_P


@pytest.mark.parametrize("name", HOW)
def test_speculative_text_follows_the_law_of_the_target(name):
    written = speculative_draws(43, **HOW[name])
    p = p_value(counts_of(written), joint_law(**HOW[name]))
    print(f"{name}: p = {p:.3f}, {written.tokens_per_round:.2f} tokens per round")
    assert p > SMALLEST_P
    assert written.tokens_per_round > 1.2


def test_the_texts_of_two_rows_are_independent():
    how = HOW["T=1"]
    assert p_value(pairs_of(plain_draws(45, **how)), pair_law(**how)) > SMALLEST_P
    assert p_value(pairs_of(speculative_draws(45, **how)), pair_law(**how)) > SMALLEST_P


def test_the_same_key_gives_the_same_text_and_another_key_another():
    first, again, other = (plain_draws(seed, **HOW["T=1"]).tokens for seed in (46, 46, 47))
    np.testing.assert_array_equal(first, again)
    assert np.mean(np.any(np.asarray(first) != np.asarray(other), axis=1)) > 0.5


def test_a_wrong_law_is_noticed():
    """Draws at one temperature against the law at the next, which the eye would take for it."""
    written = plain_draws(42, temperature=1.0)
    assert p_value(counts_of(written), joint_law(temperature=1.05)) < SMALLEST_P

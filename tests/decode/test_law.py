"""The text follows the target's distribution: all outcomes of three tokens, by chi-square.

Speculation under every rule is in tests/verify/test_rules.py.
"""

import numpy as np
import pytest
from laws import (
    HOW,
    SMALLEST_P,
    counts_of,
    joint_law,
    p_value,
    pair_law,
    pairs_of,
    plain_draws,
    speculative_draws,
)

pytestmark = pytest.mark.law


@pytest.mark.parametrize("name", HOW)
def test_plain_text_follows_the_law_of_the_target(name):
    written = plain_draws(42, **HOW[name])
    p = p_value(counts_of(written), joint_law(**HOW[name]))
    print(f"{name}: p = {p:.3f}")
    assert p > SMALLEST_P


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

"""Divergence is nothing where there is none, and what it is where it can be counted by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import PROMPT, enumerable, enumerable_params, unrelated_params
from laws import joint_law as by_hand
from texts import teach

from jspec import SamplingParams, SmallModelDrafter, Tree, autoregress, pad_prompts
from jspec.bench import agreement, distribution
from jspec.bench.suite import Method
from jspec.verify import token_level


def wrote(texts, lengths):
    """A `GenerationOutput` of these texts, of which nothing else is asked."""
    written = plain_text([PROMPT] * len(texts), tokens=len(texts[0]))
    return dataclasses.replace(written, tokens=jnp.array(texts), length=jnp.array(lengths))


def plain_text(rows, tokens):
    return autoregress(
        enumerable_params(),
        pad_prompts(rows, context_length=64, max_new_tokens=tokens),
        jax.random.split(jax.random.key(301), len(rows)),
        SamplingParams.create(len(rows), temperature=1.0),
        target=enumerable,
        max_new_tokens=tokens,
    )


def test_texts_part_at_their_first_difference_and_where_one_ends():
    plain = wrote([[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 0, 0], [1, 2, 0, 0]], [4, 4, 2, 2])
    other = wrote([[1, 2, 3, 4], [1, 5, 3, 4], [1, 2, 5, 5], [1, 2, 5, 0]], [4, 4, 2, 3])
    assert agreement.divergence(plain, plain) == agreement.Divergence(4, 1.0, 1.0)
    assert agreement.divergence(plain, other) == agreement.Divergence(4, 0.5, (4 + 1 + 2 + 2) / 12)


def test_the_distribution_is_that_of_a_slow_enumeration():
    probs = distribution.joint_probs(enumerable, enumerable_params(), PROMPT, temperature=0.7)
    np.testing.assert_allclose(probs, by_hand(temperature=0.7), atol=1e-6)


@pytest.mark.slow
def test_an_exact_rule_is_off_by_chance_alone():
    drafter = SmallModelDrafter(enumerable, Tree.chain(2))
    method = Method("exact", drafter, unrelated_params(), token_level)
    how = {"temperature": 1.0, "seed": 302}
    found = distribution.bias(method, enumerable, enumerable_params(), PROMPT, **how)
    print(found)
    assert found.draws == 20_000 and found.variation == pytest.approx(found.by_chance, rel=0.15)


def test_the_targets_nats_are_those_of_one_pass_over_each_text():
    rows = [[3], [1, 2, 5, 4]]
    written = plain_text(rows, tokens=6)
    written = dataclasses.replace(written, tokens=written.tokens[:, :6], length=jnp.array([6, 4]))
    params = enumerable_params()
    total = 0.0
    for row, text, count in zip(rows, np.asarray(written.tokens), (6, 4), strict=True):
        whole = np.array([[*row, *text]])
        log_probs = np.asarray(jax.nn.log_softmax(teach(params, whole, model=enumerable)))[0]
        total += sum(log_probs[len(row) - 1 + place, text[place]] for place in range(count))
    batch = pad_prompts(rows, context_length=64, max_new_tokens=6)
    found = distribution.cross_entropy(enumerable, params, batch, written, written)
    assert found.method == found.plain == pytest.approx(-total / 10, rel=1e-5)


def test_what_cannot_be_enumerated_is_refused(target, params):
    with pytest.raises(ValueError, match="vocabulary of 61 tokens has too many contexts"):
        distribution.joint_probs(target, params, PROMPT, temperature=1.0)
    with pytest.raises(ValueError, match="temperature=0.0: nothing is drawn at 0"):
        distribution.joint_probs(enumerable, enumerable_params(), PROMPT, temperature=0.0)

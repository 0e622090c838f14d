"""What is said of scores that trees grow by."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import next_token_law
from texts import near, rows_of, teach

from jspec import autoregress, sampling
from jspec.bench.drafts import model_logits
from jspec.bench.scores import foresight

TOKENS = 24


@pytest.fixture(scope="module")
def found(target, params, batch):
    """By a draft that is near the target, and by the target itself, at three temperatures."""
    few = rows_of(batch, slice(0, 12))
    cousin = jax.jit(near)(params, jax.random.key(12), 0.2)

    def by(draft, temperature):
        guess = functools.partial(model_logits, draft, model=target)
        return foresight(params, few.prompts, few.keys, target=target, guess=guess,
                         temperature=temperature, tokens=TOKENS)  # fmt: skip

    return {
        (name, temperature): by(draft, temperature)
        for name, draft in (("cousin", cousin), ("itself", params))
        for temperature in (0.0, 0.7, 2.0)
    }, (few, cousin)


@pytest.mark.slow
def test_a_target_that_drafts_for_itself_is_foretold_with_the_dice_and_not_without(found):
    for temperature in (0.7, 2.0):
        itself, cousin = (found[0][name, temperature] for name in ("itself", "cousin"))
        assert itself.error < 0.05 < cousin.error
        assert itself.fitted > -0.05 > itself.law
        assert cousin.fitted > max(cousin.law, cousin.one_sample)


@pytest.mark.slow
def test_no_error_says_more_than_the_fitted_one(found):
    for one in found[0].values():
        # The bounded search ends within 1e-5 of the logarithm of the best scale.
        assert one.fitted >= one.coupled - 1e-4


@pytest.mark.slow
def test_without_dice_and_heat_the_rules_score_alike(found):
    one = found[0]["cousin", 0.0]
    np.testing.assert_allclose(one.coupled, one.one_sample, rtol=1e-6)
    assert one.law == one.unwarped


@pytest.mark.slow
def test_the_law_is_that_of_the_draft_at_every_token_written(found, target, params):
    records, (few, cousin) = found
    temperature = 0.7
    how = sampling(len(few.keys), temperature=temperature)
    written = autoregress(params, few.prompts, few.keys, how, target=target, tokens=TOKENS).tokens
    likely = []
    for row, length in enumerate(few.prompts.length.tolist()):
        text = jnp.concatenate([few.prompts.tokens[row, :length], written[row]])
        padded = jnp.pad(text, (0, 128 - len(text)))[None]
        logits = np.asarray(teach(cousin, padded, model=target))[0, length - 1 :]
        for token, before in zip(written[row].tolist(), logits, strict=False):
            likely.append(np.log(next_token_law(before, temperature)[token]))
    np.testing.assert_allclose(records["cousin", temperature].law, np.mean(likely), rtol=1e-4)

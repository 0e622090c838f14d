"""What is reported of the scores that dynamic trees are built by."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import next_token_law
from texts import near, rows_of, teach

from jspec import SamplingParams, autoregress
from jspec.bench.calibration import fit_scores
from jspec.models.teacher_forcing import model_logits

pytestmark = pytest.mark.law

TOKENS = 24


@pytest.fixture(scope="module")
def found(target, params, batch):
    """By a draft that is near the target, and by the target itself, at three temperatures."""
    few = rows_of(batch, slice(0, 12))
    cousin = jax.jit(near)(params, jax.random.key(12), 0.2)

    def by(draft, temperature):
        draft_logits = functools.partial(model_logits, draft, model=target)
        return fit_scores(params, few.prompts, few.keys, target=target, draft_logits=draft_logits,
                         temperature=temperature, tokens=TOKENS)  # fmt: skip

    return {
        (name, temperature): by(draft, temperature)
        for name, draft in (("cousin", cousin), ("itself", params))
        for temperature in (0.0, 0.7, 2.0)
    }, (few, cousin)


@pytest.mark.slow
def test_a_target_that_drafts_for_itself_is_predicted_with_the_noise_and_not_without(found):
    for temperature in (0.7, 2.0):
        itself, cousin = (found[0][name, temperature] for name in ("itself", "cousin"))
        assert itself.error_scale < 0.05 < cousin.error_scale
        assert itself.fitted > -0.05 > itself.by_draft
        assert cousin.fitted > max(cousin.by_draft, cousin.one_sample)


@pytest.mark.slow
def test_no_error_says_more_than_the_fitted_one(found):
    for one in found[0].values():
        # The bounded search ends within 1e-5 of the logarithm of the best scale.
        assert one.fitted >= one.coupled - 1e-4


@pytest.mark.slow
def test_without_noise_and_temperature_the_rules_score_alike(found):
    one = found[0]["cousin", 0.0]
    np.testing.assert_allclose(one.coupled, one.one_sample, rtol=1e-6)
    assert one.by_draft == one.eagle2


@pytest.mark.slow
def test_the_distribution_is_that_of_the_draft_at_every_token_written(found, target, params):
    records, (few, cousin) = found
    temperature = 0.7
    how = SamplingParams.create(len(few.keys), temperature=temperature)
    written = autoregress(
        params, few.prompts, few.keys, how, target=target, max_new_tokens=TOKENS
    ).tokens[:, :TOKENS]
    likely = []
    for row, length in enumerate(few.prompts.length.tolist()):
        text = jnp.concatenate([few.prompts.tokens[row, :length], written[row]])
        padded = jnp.pad(text, (0, 128 - len(text)))[None]
        logits = np.asarray(teach(cousin, padded, model=target))[0, length - 1 :]
        for token, before in zip(written[row].tolist(), logits, strict=False):
            likely.append(np.log(next_token_law(before, temperature)[token]))
    np.testing.assert_allclose(records["cousin", temperature].by_draft, np.mean(likely), rtol=1e-4)

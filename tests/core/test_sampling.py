"""One way to process logits, one noise, one pick: against sorting, and row by row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import next_token_law

from jspec import SamplingParams
from jspec.core.filters import keep_min_p
from jspec.core.penalties import init_counts
from jspec.core.sampling import first_best, pick_token, process_logits, sample_noise

pytestmark = pytest.mark.law


def bare(logits: jax.Array, how: SamplingParams) -> jax.Array:
    """Processed logits of sequences that have said nothing yet."""
    batch, _, vocabulary = logits.shape
    none = jnp.zeros(batch, jnp.int32)
    history = init_counts(jnp.zeros((batch, 1), jnp.int32), none, none, vocab_size=vocabulary)
    return process_logits(logits, how, history)


def law_of(logits: np.ndarray, **how: float) -> np.ndarray:
    """`[V]` what processing makes of one row's logits."""
    processed = bare(jnp.asarray(logits, jnp.float32)[None, None], SamplingParams.create(1, **how))
    return np.asarray(jax.nn.softmax(processed)[0, 0])


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize(
    "cut",
    [{}, {"top_k": 1}, {"top_k": 7}, {"top_p": 0.5}, {"top_p": 0.95}, {"top_k": 9, "top_p": 0.7}],
    ids=str,
)
def test_processing_equals_sorting(temperature, cut):
    rng = np.random.default_rng(61)
    logits = rng.normal(size=(5, 3, 40)).astype(np.float32) * 3
    processed = bare(jnp.asarray(logits), SamplingParams.create(5, temperature=temperature, **cut))
    for index in np.ndindex(5, 3):
        expected = next_token_law(logits[index], temperature, **cut)
        np.testing.assert_array_equal(np.isfinite(processed[index]), expected > 0)
        np.testing.assert_allclose(jax.nn.softmax(processed[index]), expected, atol=1e-5)


def test_temperature_comes_before_top_p():
    np.testing.assert_allclose(
        law_of(np.log([0.8, 0.11, 0.09]), temperature=2.0, top_p=0.75), [0.729, 0.271, 0], atol=1e-3
    )


def test_top_k_comes_before_top_p():
    """Half of what top-k leaves is the first token; of all of it, the first two."""
    logits = np.log([0.3, 0.28, 0.22, 0.2])
    np.testing.assert_allclose(
        law_of(logits, temperature=1.0, top_k=2, top_p=0.5), [1, 0, 0, 0], atol=1e-6
    )


def test_tokens_that_tie_at_the_threshold_are_kept_together():
    tied = np.log([0.5, 0.2, 0.2, 0.1])
    np.testing.assert_allclose(
        law_of(tied, temperature=1.0, top_k=2), [5 / 9, 2 / 9, 2 / 9, 0], atol=1e-6
    )
    np.testing.assert_allclose(
        law_of(tied, temperature=1.0, top_p=0.6), [5 / 9, 2 / 9, 2 / 9, 0], atol=1e-6
    )


def test_negative_zero_ties_with_zero():
    np.testing.assert_allclose(
        law_of([0.0, -0.0, -5.0], temperature=1.0, top_k=1), [0.5, 0.5, 0], atol=1e-6
    )


def test_top_k_of_more_than_the_vocabulary_and_top_p_of_one_keep_everything():
    logits = np.random.default_rng(62).normal(size=12) * 10
    for how in ({"top_k": 0}, {"top_k": 12}, {"top_k": 1000}, {"top_p": 1.0}):
        assert np.all(law_of(logits, temperature=1.0, **how) > 0)


def test_rows_do_not_influence_each_other():
    rng = np.random.default_rng(63)
    logits = jnp.asarray(rng.normal(size=(6, 2, 30)), jnp.float32)
    how = {
        "temperature": [0.0, 0.5, 1.0, 1.0, 2.0, 0.0],
        "top_k": [0, 0, 4, 0, 3, 5],
        "top_p": [1.0, 1.0, 1.0, 0.6, 0.9, 0.5],
    }
    keys = jax.random.split(jax.random.key(63), 6)
    positions = jnp.asarray(rng.integers(0, 100, (6, 2)))

    def chosen(rows):
        one = SamplingParams.create(
            len(rows), **{name: [v[r] for r in rows] for name, v in how.items()}
        )
        noise = sample_noise(keys[rows], positions[rows], 30, one)
        processed = bare(logits[rows], one)
        return processed, noise, pick_token(processed, noise)

    together = chosen(np.arange(6))
    for row in range(6):
        for whole, alone in zip(together, chosen(np.array([row])), strict=True):
            np.testing.assert_array_equal(whole[row], alone[0])


def test_greedy_rows_ignore_the_noise_and_every_cut():
    logits = jnp.asarray(np.random.default_rng(64).normal(size=(2, 3, 20)), jnp.float32)
    how = SamplingParams.create(2, temperature=[0.0, 5.0], top_k=[3, 0], top_p=[0.4, 1.0])
    noise = sample_noise(
        jax.random.split(jax.random.key(64), 2), jnp.arange(6).reshape(2, 3), 20, how
    )
    picked = pick_token(bare(logits, how), noise)
    np.testing.assert_array_equal(noise[0], 0)
    np.testing.assert_array_equal(picked[0], jnp.argmax(logits[0], axis=-1))
    assert np.any(picked[1] != jnp.argmax(logits[1], axis=-1))


def test_the_best_token_is_the_first_of_those_that_are_as_good():
    rng = np.random.default_rng(7)
    # Few values, so that most rows tie.
    scores = rng.integers(0, 4, (5, 3, 33)).astype(np.float32)
    scores[0, 0] = -np.inf
    scores[1, 1, :30] = -np.inf
    np.testing.assert_array_equal(first_best(jnp.asarray(scores)), np.argmax(scores, axis=-1))
    # NaN makes some token of the vocabulary.
    scores[2, 2, 5] = np.nan
    found = np.asarray(first_best(jnp.asarray(scores)))
    assert found.dtype == np.int32 and np.all((found >= 0) & (found < 33))


def test_noise_is_a_function_of_key_and_position_alone():
    keys = jax.random.split(jax.random.key(65), 3)
    how = SamplingParams.create(3, temperature=1.0)
    positions = jnp.array([[4, 5, 9], [4, 5, 9], [9, 4, 5]])
    noise = np.asarray(sample_noise(keys, positions, 16, how))
    for row, key in enumerate(keys):
        for place, position in enumerate(positions[row]):
            expected = jax.random.gumbel(jax.random.fold_in(key, position), (16,))
            np.testing.assert_array_equal(noise[row, place], expected)
    same = sample_noise(keys[jnp.array([0, 0, 1])], positions, 16, how)
    np.testing.assert_array_equal(same[0], same[1])
    assert len({noise[row, place].tobytes() for row, place in np.ndindex(3, 3)}) == 9


def test_a_min_p_of_one_keeps_the_likeliest_and_what_ties_with_it():
    logits = jnp.array([[[0.5, 2.0, 2.0, -1.0]]])
    kept = keep_min_p(logits, jnp.ones(1))
    np.testing.assert_array_equal(np.isfinite(kept[0, 0]), [False, True, True, False])

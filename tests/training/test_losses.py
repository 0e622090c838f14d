"""Losses against a computation of a few lines in float64, their gradients against differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.core.sampling import SamplingParams, sample_noise
from jspec.training import losses
from jspec.training.losses import LOSSES, mixture

VOCABULARY = 12
STEP = 1e-5


def laws(teacher, student):
    p, q = (np.exp(x - x.max()) for x in (teacher, student))
    return p / p.sum(), q / q.sum()


def forward_kl(p, q):
    return np.sum(p * np.log(p / q))


def jensen_shannon(p, q, beta=0.5):
    m = beta * p + (1 - beta) * q
    return beta * forward_kl(p, m) + (1 - beta) * forward_kl(q, m)


def coupled_rejection(p, q):
    kept = 0
    for x in range(len(p)):
        kept += 1 / sum(max(p[y] / p[x], q[y] / q[x]) for y in range(len(p)))
    return 1 - kept


EXPECTED = {
    "forward_kl": forward_kl,
    "reverse_kl": lambda p, q: forward_kl(q, p),
    "jensen_shannon": jensen_shannon,
    "total_variation": lambda p, q: np.abs(p - q).sum() / 2,
    "hard_cross_entropy": lambda p, q: -np.log(q[p.argmax()]),
    "coupled_rejection": coupled_rejection,
}


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(0)
    return 2 * rng.normal(size=(2, 5, VOCABULARY))


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_what_it_says(name, pairs):
    found = LOSSES[name](*jnp.asarray(pairs, jnp.float32))
    expected = [EXPECTED[name](*laws(t, s)) for t, s in zip(*pairs, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_a_gradient_is_what_differences_say(name, pairs):
    teachers, students = pairs
    total = jax.grad(lambda s: LOSSES[name](jnp.asarray(teachers, jnp.float32), s).sum())
    found = total(jnp.asarray(students, jnp.float32))
    for row, (teacher, student) in enumerate(zip(teachers, students, strict=True)):
        for token in range(VOCABULARY):
            shift = STEP * np.eye(VOCABULARY)[token]
            ends = [EXPECTED[name](*laws(teacher, student + side * shift)) for side in (1, -1)]
            difference = (ends[0] - ends[1]) / (2 * STEP)
            np.testing.assert_allclose(found[row, token], difference, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_the_teachers_own_student_has_the_least_loss(name, pairs):
    teachers, students = jnp.asarray(pairs, jnp.float32)
    own, other = LOSSES[name](teachers, teachers), LOSSES[name](teachers, students)
    if name != "hard_cross_entropy":
        np.testing.assert_allclose(own, 0, atol=1e-6)
    assert np.all(own < other)


def test_jensen_shannon_leans_as_beta_says(pairs):
    found = losses.jensen_shannon(*jnp.asarray(pairs, jnp.float32), beta=0.9)
    expected = [jensen_shannon(*laws(t, s), beta=0.9) for t, s in zip(*pairs, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_with_few_candidates_the_coupled_loss_is_wrong_by_what_is_left_over(pairs, count):
    found = losses.coupled_rejection(*jnp.asarray(pairs, jnp.float32), candidates=count)
    for row, (teacher, student) in enumerate(zip(*pairs, strict=True)):
        both = laws(teacher, student)
        kept = np.unique(np.argsort([-law for law in both], axis=-1)[:, :count])
        left = min(1 - law[kept].sum() for law in both)
        assert abs(found[row] - coupled_rejection(*both)) < left


def test_the_coupled_loss_is_what_shared_noise_does(pairs):
    """40,000 picks with the noise that decoding uses; five standard deviations are 0.0125."""
    teacher, student = (jnp.asarray(x[0], jnp.float32) for x in pairs)
    count = 40_000
    noise = sample_noise(
        jax.random.key(1)[None],
        jnp.arange(count)[None],
        VOCABULARY,
        SamplingParams.create(1, temperature=1.0),
    )[0]
    picks = [(logits[None] + noise).argmax(axis=-1) for logits in (teacher, student)]
    parted = np.mean(picks[0] != picks[1])
    assert abs(parted - float(losses.coupled_rejection(teacher, student))) < 0.0125


def test_a_mixture_is_a_weighted_sum(pairs):
    pairs = jnp.asarray(pairs, jnp.float32)
    mixed = mixture({"forward_kl": 0.3, "total_variation": 0.7})(*pairs)
    expected = 0.3 * losses.forward_kl(*pairs) + 0.7 * losses.total_variation(*pairs)
    np.testing.assert_allclose(mixed, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="^losses={'kl': 1}: name at least one of forward_kl"):
        mixture({"kl": 1})

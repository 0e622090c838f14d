"""What is logged and chosen by is a mean over the tokens that count, however they are spread."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jspec import ModelConfig, transformer
from jspec.training.data import Batch
from jspec.training.evaluation import BATCHES, held_out_loss
from jspec.training.losses import (
    LOSSES,
    forward_kl,
    loss_and_rejection_rate,
    make_targets,
)
from jspec.training.means import LOSS, Mean, add_means, read_means
from jspec.training.objectives import distillation_loss, language_model_loss
from jspec.training.recipe import Recipe
from jspec.training.step import init_state, make_optimizer, train_step

pytestmark = pytest.mark.law

MODEL = transformer(ModelConfig(50, 16, 24, 1, 2, 1, 8, 64))
TEACHER = transformer(ModelConfig(50, 24, 24, 1, 2, 1, 12, 64))
OBJECTIVE = functools.partial(language_model_loss, model=MODEL)
TAUGHT = functools.partial(distillation_loss, model=MODEL, teacher=TEACHER, loss=forward_kl)


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(1))


@pytest.fixture(scope="module")
def teacher():
    return jax.jit(TEACHER.init)(jax.random.key(7))


def rows_of(batch: Batch, rows: slice) -> Batch:
    return jax.tree.map(lambda x: x[rows], batch)


def uneven(seed: int) -> Batch:
    """Three rows, which count many tokens, three, and none."""
    tokens = np.random.default_rng(seed).integers(0, 50, (3, 25)).astype(np.int32)
    weight = np.ones((3, 24), np.float32)
    weight[1, 3:], weight[2] = 0, 0
    return Batch(tokens, np.zeros_like(tokens), weight, np.ones_like(weight), np.arange(3))


class Rows:
    """A source of which some rows count nothing."""

    def __init__(self, counting: bool = True) -> None:
        self.counting = counting

    def rows(self, numbers: np.ndarray) -> Batch:
        rows = [rows_of(uneven(int(n)), slice(n % 3, n % 3 + 1)) for n in numbers]
        batch = jax.tree.map(lambda *x: np.concatenate(x), *rows)
        return batch if self.counting else batch._replace(weight=0 * batch.weight)


@pytest.mark.parametrize("name", ["language_model", "distillation"])
def test_parts_of_a_batch_add_up_to_it(params, teacher, name):
    objective, frozen = {"language_model": (OBJECTIVE, ()), "distillation": (TAUGHT, teacher)}[name]
    batch = uneven(3)
    whole = read_means(objective(params, frozen, batch)[1])
    parts = [objective(params, frozen, rows_of(batch, slice(n, n + 1)))[1] for n in range(3)]
    assert read_means(add_means(parts)) == pytest.approx(whole, rel=1e-5)
    values = [read_means(part)[LOSS] for part in parts[:2]]
    assert np.mean(values) != pytest.approx(whole[LOSS], rel=1e-3)


def test_what_counts_nothing_has_no_mean(params):
    means = OBJECTIVE(params, (), rows_of(uneven(3), slice(2, 3)))[1]
    assert read_means({**means, "other": Mean(np.float32(3), np.float32(2))}) == {"other": 1.5}


def test_the_held_out_loss_is_that_of_the_tokens_that_count(params):
    measured = held_out_loss(OBJECTIVE, (), Rows(), 2)(params)
    batch = Rows().rows(np.arange(2 * BATCHES))
    whole = float(OBJECTIVE(params, (), batch)[0])
    assert measured == pytest.approx({"held_out_loss": whole}, rel=1e-5)
    with pytest.raises(ValueError, match="none of 16 held-out rows has a token to learn from"):
        held_out_loss(OBJECTIVE, (), Rows(counting=False), 2)(params)


@pytest.mark.parametrize(("name", "accumulate"), [("adamw", 1), ("adamw", 2), ("muon", 1)])
def test_a_batch_that_counts_nothing_changes_nothing(params, name, accumulate):
    rule = make_optimizer(
        Recipe(name="x", optimizer=name, warmup_steps=0, gradient_accumulation_steps=accumulate)
    )
    advance = jax.jit(functools.partial(train_step, objective=OBJECTIVE, optimizer=rule))
    before = advance(init_state(params, optimizer=rule), (), uneven(1))[0]
    after, means = advance(before, (), rows_of(uneven(3), slice(2, 3)))
    assert int(after.step) == int(before.step) + 1 and read_means(means) == {}
    jax.tree.map(
        np.testing.assert_array_equal,
        (after.params, after.optimizer),
        (before.params, before.optimizer),
    )
    moved = advance(after, (), uneven(2))[0]
    assert optax.tree.norm(jax.tree.map(np.subtract, moved.params, params)) > 0


def test_accumulated_batches_weigh_by_what_they_count(params):
    parts = [rows_of(uneven(4), slice(n, n + 1)) for n in (0, 1, 2)]
    whole = jax.tree.map(lambda *x: np.concatenate(x), *parts[:2])
    moved = []
    for accumulate, batches in ((1, [whole]), (2, parts)):
        rule = make_optimizer(
            Recipe(
                name="x", optimizer="adamw", warmup_steps=0, steps=10 * accumulate,
                gradient_accumulation_steps=accumulate,
            )
        )  # fmt: skip
        state = init_state(params, optimizer=rule)
        for batch in batches:
            state = train_step(state, (), batch, objective=OBJECTIVE, optimizer=rule)[0]
        moved.append(jax.tree.map(np.subtract, state.params, params))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-2, atol=1e-5), *moved)
    assert optax.tree.norm(moved[0]) > 0


def test_a_smaller_vocabulary_accepts_what_the_target_gives_its_tokens():
    """Targets that the student's vocabulary does not have are rejected, not left out."""
    rng = np.random.default_rng(0)
    theirs, ours = rng.normal(size=(2, 9, 12)).astype(np.float32) * 3, rng.normal(size=(2, 9, 5))
    tokens = np.array([1, 4, 5, 9, 11])
    weight = (rng.random((2, 9)) > 0.3).astype(np.float32)
    temperature = np.where(np.arange(9) % 3 == 0, 0.0, 0.7)[None].repeat(2, 0).astype(np.float32)
    _, rejected, counted = loss_and_rejection_rate(
        forward_kl,
        make_targets(jnp.asarray(theirs), temperature, tokens),
        jnp.asarray(ours, jnp.float32),
        weight,
    )
    t = np.where(temperature == 0, 1, temperature)[..., None]
    p = np.asarray(jax.nn.softmax(theirs / t))
    greedy = np.eye(12)[theirs.argmax(-1)]
    p = np.where(temperature[..., None] == 0, greedy, p)
    q = np.zeros_like(p)
    q[..., tokens] = jax.nn.softmax(ours / t)
    np.testing.assert_allclose(rejected, ((1 - np.minimum(p, q).sum(-1)) * weight).sum(), rtol=1e-4)
    known = np.isin(theirs.argmax(-1), tokens)
    np.testing.assert_allclose(counted, (known * weight).sum())
    assert 0 < float(counted) < weight.sum()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_teacher_that_is_not_finite_is_not_learned_from(loss, temperature):
    theirs = np.zeros((1, 3, 8), np.float32)
    ours, weight = np.ones((1, 3, 8), np.float32), np.ones((1, 3), np.float32)

    def lost(value: float) -> float:
        spoilt = theirs.copy()
        spoilt[0, 1, 5] = value
        found = make_targets(jnp.asarray(spoilt), np.full((1, 3), temperature, np.float32))
        return float(loss_and_rejection_rate(LOSSES[loss], found, jnp.asarray(ours), weight)[0])

    assert np.isfinite(lost(3.0)) and np.isfinite(lost(-np.inf))
    assert np.isnan(lost(np.nan)) and np.isnan(lost(np.inf))

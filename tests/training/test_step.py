"""A training step: what it lowers, and by which rule."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jspec import ModelConfig, transformer
from jspec.training.data import Batch
from jspec.training.losses import LOSSES, forward_kl, total_variation
from jspec.training.objectives import distillation_loss, in_dtype, language_model_loss
from jspec.training.recipe import Recipe
from jspec.training.step import init_state, make_optimizer, train_step

pytestmark = pytest.mark.law

MODEL = transformer(ModelConfig(50, 16, 24, 2, 2, 1, 8, 64))
# A vocabulary that is the student's, filled up.
TEACHER = transformer(ModelConfig(52, 24, 24, 2, 2, 1, 12, 64))


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(1))


@pytest.fixture(scope="module")
def teacher():
    return jax.jit(TEACHER.init)(jax.random.key(7))


def blocks(seed: int, temperature: float = 1.0) -> Batch:
    """Three rows of two documents each, the prompt of whose second is only read."""
    tokens = np.random.default_rng(seed).integers(0, 50, (3, 25)).astype(np.int32)
    document = np.broadcast_to(np.arange(25) >= 9, (3, 25)).astype(np.int32)
    weight = np.broadcast_to(~np.isin(np.arange(24), (8, 9, 10)), (3, 24)).astype(np.float32)
    return Batch(tokens, document, weight, np.full((3, 24), temperature, np.float32), np.arange(3))


def logits(model, params, batch) -> jax.Array:
    """Each document read for itself."""
    return jnp.concatenate(
        [alone(model, params, batch.tokens[:, piece]) for piece in (slice(0, 9), slice(9, 24))],
        axis=1,
    )


def alone(model, params, tokens) -> jax.Array:
    at = np.arange(tokens.shape[1])
    places = np.broadcast_to(at, tokens.shape)
    output = model.forward(params, tokens, places, at[:, None] >= at[None])
    return model.logits(params, output.hidden)


def gradient(objective, params, frozen=()):
    return jax.jit(jax.value_and_grad(objective, has_aux=True))(params, frozen, blocks(2))


@pytest.mark.parametrize("chunk", [pytest.param(8, marks=pytest.mark.slow), 24])
def test_reading_in_chunks_changes_neither_the_loss_nor_its_gradient(params, teacher, chunk):
    taught = functools.partial(distillation_loss, model=MODEL, teacher=TEACHER, loss=forward_kl)
    for objective, frozen in (
        (functools.partial(language_model_loss, model=MODEL), ()),
        (taught, teacher),
    ):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
            gradient(functools.partial(objective, chunk_size=chunk), params, frozen),
            gradient(objective, params, frozen),
        )


def test_the_loss_is_the_mean_over_the_tokens_that_count(params):
    batch = blocks(3)
    law = jax.nn.log_softmax(logits(MODEL, params, batch))
    picked = np.take_along_axis(np.asarray(law), batch.tokens[:, 1:, None], axis=2)[..., 0]
    value, _ = language_model_loss(params, (), batch, model=MODEL)
    np.testing.assert_allclose(value, -picked[batch.weight > 0].mean(), rtol=1e-5)


@pytest.mark.parametrize("temperature", [pytest.param(0.5, marks=pytest.mark.slow), 1.0, 2.0])
def test_distillation_compares_laws_at_the_temperature_of_the_batch(params, teacher, temperature):
    batch = blocks(3, temperature)
    laws = [
        logits(model, weights, batch)[..., :50] / temperature
        for model, weights in ((TEACHER, teacher), (MODEL, params))
    ]
    value, measures = distillation_loss(
        params, teacher, batch, model=MODEL, teacher=TEACHER, loss=forward_kl, chunk_size=8
    )
    counted = batch.weight > 0
    np.testing.assert_allclose(value, forward_kl(*laws)[counted].mean(), rtol=1e-5)
    kept = 1 - total_variation(*laws)[counted].mean()
    np.testing.assert_allclose(measures["acceptance_rate"].value, kept, rtol=1e-5)


@pytest.mark.parametrize("tied", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_gradient_is_that_of_the_loss_written_out(teacher, tied):
    """The step makes it chunk by chunk, beside the loss; here jax makes it of all logits."""
    model = transformer(dataclasses.replace(MODEL.config, tie_word_embeddings=tied))
    params, batch = jax.jit(model.init)(jax.random.key(3)), blocks(3, 0.7)

    def written_out(params):
        target, student = (
            logits(one, weights, batch)[..., :50] / 0.7
            for one, weights in ((TEACHER, teacher), (model, params))
        )
        return (forward_kl(target, student) * batch.weight).sum() / batch.weight.sum()

    def ours(params):
        # Times a number, as where the loss is a part of another.
        return (
            3
            * distillation_loss(
                params, teacher, batch, model=model, teacher=TEACHER, loss=forward_kl, chunk_size=8
            )[0]
        )

    expected = jax.jit(jax.grad(written_out))(params)
    found = jax.jit(jax.grad(ours))(params)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = np.abs(other).max()
        assert scale > 0
        np.testing.assert_allclose(one, 3 * np.asarray(other), atol=1e-4 * scale)


def test_at_temperature_0_every_kl_is_the_nats_of_the_teachers_likeliest_token(params, teacher):
    batch = blocks(3, 0.0)
    value, _ = distillation_loss(
        params, teacher, batch, model=MODEL, teacher=TEACHER, loss=forward_kl, chunk_size=8
    )
    best = logits(TEACHER, teacher, batch)[..., :50].argmax(axis=-1)
    law = jax.nn.log_softmax(logits(MODEL, params, batch))
    picked = np.take_along_axis(np.asarray(law), np.asarray(best)[..., None], axis=2)[..., 0]
    np.testing.assert_allclose(value, -picked[batch.weight > 0].mean(), rtol=1e-5)


def test_the_teacher_is_not_taught(params, teacher):
    objective = functools.partial(distillation_loss, model=MODEL, teacher=TEACHER, loss=forward_kl)
    rule = optax.sgd(0.1)
    state, _ = train_step(
        init_state(params, optimizer=rule), teacher, blocks(2), objective=objective, optimizer=rule
    )
    assert jax.tree.structure(state.params) == jax.tree.structure(params)


def test_logits_of_a_whole_batch_never_exist_at_once():
    """The compiled step's memory grows by less than one vocabulary of the tokens that are added."""
    vocabulary, chunk = 4096, 16
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 1, "num_key_value_heads": 1}
    model = transformer(
        ModelConfig(vocab_size=vocabulary, head_dim=16, max_position_embeddings=512, **sizes)
    )
    weights = jax.eval_shape(model.init, jax.random.key(0))
    objective = functools.partial(
        distillation_loss, model=model, teacher=model, loss=forward_kl, chunk_size=chunk
    )

    def memory(length: int, objective=objective) -> int:
        whole, targets = (2, length + 1), (2, length)
        batch = Batch(
            *(jax.ShapeDtypeStruct(whole, jnp.int32) for _ in range(2)),
            *(jax.ShapeDtypeStruct(targets, jnp.float32) for _ in range(2)),
            jax.ShapeDtypeStruct(whole[:1], jnp.int32),
        )
        program = jax.jit(jax.grad(objective, has_aux=True)).lower(weights, weights, batch)
        return program.compile().memory_analysis().temp_size_in_bytes

    added = 2 * (128 - 64) * vocabulary * 4
    assert memory(128) - memory(64) < added / 2
    # Rows that are read whole have logits in pieces of 128 tokens all the same.
    whole = functools.partial(objective, chunk_size=0)
    assert memory(128, whole) - memory(64, whole) > added
    assert memory(256, whole) - memory(128, whole) < added


def test_the_layers_matrices_move_along_orthogonal_directions(params):
    """Muon's first update has nearly equal singular values; Adam's, outside them, have not."""
    rule = make_optimizer(Recipe(name="tiny", sequence_length=24, warmup_steps=0, weight_decay=0.0))
    gradients = gradient(functools.partial(language_model_loss, model=MODEL), params)[1]
    updates, _ = jax.jit(rule.update)(gradients, rule.init(params), params)
    spread = {}
    for path, update in jax.tree_util.tree_flatten_with_path(updates)[0]:
        if update.ndim == 2:
            values = np.linalg.svd(update, compute_uv=False)
            spread[jax.tree_util.keystr(path)] = values[0] / values[len(values) // 2]
    for path, ratio in spread.items():
        assert (ratio < 2) == ("layer_" in path), (path, ratio)


@pytest.mark.parametrize("name", ["language_model", *LOSSES])
def test_steps_lower_the_loss(params, teacher, name):
    if name == "language_model":
        objective, frozen = functools.partial(language_model_loss, model=MODEL), ()
    else:
        objective = functools.partial(
            distillation_loss, model=MODEL, teacher=TEACHER, loss=LOSSES[name]
        )
        frozen = teacher
    rule = optax.adam(1e-2)
    advance = jax.jit(functools.partial(train_step, objective=objective, optimizer=rule))
    state = init_state(params, optimizer=rule)
    losses = []
    for _ in range(30):
        state, metrics = advance(state, frozen, blocks(5))
        losses.append(float(metrics["loss"].value))
    assert losses[-1] < 0.7 * losses[0] and int(state.step) == 30
    assert not optax.tree.norm(jax.tree.map(np.subtract, params, state.params)) == 0


def test_what_is_computed_again_for_the_gradient_does_not_change_it(params, teacher):
    again = transformer(MODEL.config, remat=True)
    objectives = [
        functools.partial(
            distillation_loss, model=model, teacher=TEACHER, loss=forward_kl, chunk_size=8
        )
        for model in (MODEL, again)
    ]
    found = [gradient(objective, params, teacher) for objective in objectives]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), *found)
    programs = [
        jax.jit(jax.grad(objective, has_aux=True)).lower(params, teacher, blocks(2)).as_text()
        for objective in objectives
    ]
    products = [text.count("dot_general") for text in programs]
    assert products[1] > products[0]


@pytest.mark.parametrize("name", [pytest.param("muon", marks=pytest.mark.slow), "adamw"])
def test_two_batches_that_are_accumulated_move_as_one_of_both(params, name):
    batch = blocks(4)
    whole = jax.tree.map(lambda x: np.concatenate([x, x[:1]]), batch)
    halves = [jax.tree.map(lambda x, i=i: x[2 * i : 2 * i + 2], whole) for i in range(2)]
    objective = functools.partial(language_model_loss, model=MODEL)
    moved = []
    for accumulate, batches in ((1, [whole]), (2, halves)):
        recipe = Recipe(
            name="x",
            warmup_steps=0,
            optimizer=name,
            gradient_accumulation_steps=accumulate,
            steps=10 * accumulate,
        )
        rule = make_optimizer(recipe)
        advance = jax.jit(functools.partial(train_step, objective=objective, optimizer=rule))
        state = init_state(params, optimizer=rule)
        for one in batches:
            state, _ = advance(state, (), one)
        moved.append(jax.tree.map(np.subtract, state.params, params))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-2, atol=1e-5), *moved)
    assert optax.tree.norm(moved[0]) > 0


def test_weights_stay_float32_where_what_is_computed_is_rounded(params):
    objective = functools.partial(language_model_loss, model=MODEL)
    rule = optax.sgd(1e-3)
    advance = jax.jit(
        functools.partial(train_step, objective=in_dtype(objective, "bfloat16"), optimizer=rule)
    )
    state, metrics = advance(init_state(params, optimizer=rule), (), blocks(2))
    exact, _ = objective(params, (), blocks(2))
    assert 0 < abs(float(metrics["loss"].value - exact)) < 0.05
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {np.dtype("float32")}

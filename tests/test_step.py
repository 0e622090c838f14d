"""A training step: what it lowers, and by which rule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jspec import ModelConfig, transformer
from jspec.distill.losses import LOSSES, forward_kl, total_variation
from jspec.distill.objective import distillation, language_model
from jspec.distill.recipe import Recipe, optimizer
from jspec.distill.step import start, step

MODEL = transformer(ModelConfig(50, 16, 24, 2, 2, 1, 8, 64))
# A vocabulary that is the student's, filled up.
TEACHER = transformer(ModelConfig(52, 24, 24, 2, 2, 1, 12, 64))


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(1))


@pytest.fixture(scope="module")
def teacher():
    return jax.jit(TEACHER.init)(jax.random.key(7))


def blocks(seed: int) -> jax.Array:
    return jax.random.randint(jax.random.key(seed), (3, 25), 0, 50)


def logits(model, params, tokens) -> jax.Array:
    at = np.arange(24)
    places = np.broadcast_to(at, (3, 24))
    output = model.forward(params, tokens[:, :-1], places, at[:, None] >= at[None])
    return model.logits(params, output.hidden)


def gradient(objective, params, frozen=()):
    return jax.jit(jax.value_and_grad(objective, has_aux=True))(params, frozen, blocks(2))


@pytest.mark.parametrize("chunk", [8, 24])
def test_reading_in_chunks_changes_neither_the_loss_nor_its_gradient(params, teacher, chunk):
    taught = functools.partial(
        distillation, model=MODEL, teacher=TEACHER, loss=forward_kl, temperature=0.7
    )
    for objective, frozen in (
        (functools.partial(language_model, model=MODEL), ()),
        (taught, teacher),
    ):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
            gradient(functools.partial(objective, chunk=chunk), params, frozen),
            gradient(objective, params, frozen),
        )


def test_the_loss_is_the_mean_over_the_tokens(params):
    tokens = blocks(3)
    law = jax.nn.log_softmax(logits(MODEL, params, tokens))
    picked = np.take_along_axis(np.asarray(law), np.asarray(tokens)[:, 1:, None], axis=2)
    value, _ = language_model(params, (), tokens, model=MODEL)
    np.testing.assert_allclose(value, -picked.mean(), rtol=1e-5)


def test_distillation_compares_laws_at_the_temperature_of_the_loss(params, teacher):
    temperature = 0.5
    tokens = blocks(3)
    laws = [
        logits(model, weights, tokens)[..., :50] / temperature
        for model, weights in ((TEACHER, teacher), (MODEL, params))
    ]
    value, measures = distillation(
        params, teacher, tokens,
        model=MODEL, teacher=TEACHER, loss=forward_kl, temperature=temperature, chunk=8,
    )  # fmt: skip
    np.testing.assert_allclose(value, forward_kl(*laws).mean(), rtol=1e-5)
    kept = 1 - total_variation(*laws).mean()
    np.testing.assert_allclose(measures["acceptance"], kept, rtol=1e-5)


def test_the_teacher_is_not_taught(params, teacher):
    objective = functools.partial(distillation, model=MODEL, teacher=TEACHER, loss=forward_kl)
    rule = optax.sgd(0.1)
    state, _ = step(
        start(params, optimizer=rule), teacher, blocks(2), objective=objective, optimizer=rule
    )
    assert jax.tree.structure(state.params) == jax.tree.structure(params)


def test_logits_of_a_whole_batch_never_exist_at_once():
    """The compiled step's memory grows by less than one vocabulary of the tokens that are added."""
    vocabulary, chunk = 4096, 16
    sizes = {"width": 16, "feedforward": 16, "layers": 1, "heads": 1, "kv_heads": 1}
    model = transformer(ModelConfig(vocabulary=vocabulary, channels=16, context=512, **sizes))
    weights = jax.eval_shape(model.init, jax.random.key(0))
    objective = functools.partial(
        distillation, model=model, teacher=model, loss=forward_kl, chunk=chunk
    )

    def memory(length: int, objective=objective) -> int:
        tokens = jax.ShapeDtypeStruct((2, length + 1), jnp.int32)
        program = jax.jit(jax.grad(objective, has_aux=True)).lower(weights, weights, tokens)
        return program.compile().memory_analysis().temp_size_in_bytes

    added = 2 * (128 - 64) * vocabulary * 4
    assert memory(128) - memory(64) < added / 2
    whole = functools.partial(objective, chunk=0)
    assert memory(128, whole) - memory(64, whole) > added


def test_the_layers_matrices_move_along_orthogonal_directions(params):
    """Muon's first update has nearly equal singular values; Adam's, outside them, have not."""
    rule = optimizer(Recipe("tiny", MODEL.config, length=24, warmup=0, weight_decay=0.0))
    gradients = gradient(functools.partial(language_model, model=MODEL), params)[1]
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
        objective, frozen = functools.partial(language_model, model=MODEL), ()
    else:
        objective = functools.partial(distillation, model=MODEL, teacher=TEACHER, loss=LOSSES[name])
        frozen = teacher
    rule = optax.adam(1e-2)
    advance = jax.jit(functools.partial(step, objective=objective, optimizer=rule))
    state = start(params, optimizer=rule)
    losses = []
    for _ in range(30):
        state, metrics = advance(state, frozen, blocks(5))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.7 * losses[0] and int(state.step) == 30
    assert not optax.tree.norm(jax.tree.map(np.subtract, params, state.params)) == 0

"""A training step: what it lowers, and by which rule."""

import functools

import jax
import numpy as np
import optax
import pytest

from jspec import ModelConfig, transformer
from jspec.distill.recipe import Recipe, optimizer
from jspec.distill.step import loss, start, step

MODEL = transformer(ModelConfig(50, 16, 24, 2, 2, 1, 8, 64))


@pytest.fixture(scope="module")
def params():
    return MODEL.init(jax.random.key(1))


def blocks(seed: int) -> jax.Array:
    return jax.random.randint(jax.random.key(seed), (3, 25), 0, 50)


@pytest.mark.parametrize("chunk", [6, 12, 24])
def test_reading_in_chunks_changes_neither_the_loss_nor_its_gradient(params, chunk):
    whole = jax.value_and_grad(functools.partial(loss, model=MODEL))(params, blocks(2))
    chunked = jax.value_and_grad(functools.partial(loss, model=MODEL, chunk=chunk))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
        chunked(params, blocks(2)),
        whole,
    )


def test_the_loss_is_the_mean_over_the_tokens(params):
    tokens = blocks(3)
    at = np.arange(24)
    output = MODEL.forward(
        params, tokens[:, :-1], np.broadcast_to(at, (3, 24)), at[:, None] >= at[None]
    )
    law = jax.nn.log_softmax(MODEL.logits(params, output.hidden))
    picked = np.take_along_axis(np.asarray(law), np.asarray(tokens)[:, 1:, None], axis=2)
    np.testing.assert_allclose(loss(params, tokens, model=MODEL), -picked.mean(), rtol=1e-5)


def test_the_layers_matrices_move_along_orthogonal_directions(params):
    """Muon's first update has nearly equal singular values; Adam's, outside them, have not."""
    rule = optimizer(Recipe("tiny", MODEL.config, length=24, warmup=0, weight_decay=0.0))
    gradients = jax.grad(functools.partial(loss, model=MODEL))(params, blocks(4))
    updates, _ = rule.update(gradients, rule.init(params), params)
    spread = {}
    for path, update in jax.tree_util.tree_flatten_with_path(updates)[0]:
        if update.ndim == 2:
            values = np.linalg.svd(update, compute_uv=False)
            spread[jax.tree_util.keystr(path)] = values[0] / values[len(values) // 2]
    for path, ratio in spread.items():
        assert (ratio < 2) == ("layer_" in path), (path, ratio)


def test_steps_lower_the_loss(params):
    rule = optimizer(Recipe("tiny", MODEL.config, length=24, steps=30, warmup=3))
    advance = jax.jit(functools.partial(step, model=MODEL, optimizer=rule))
    state = start(params, optimizer=rule)
    losses = []
    for _ in range(30):
        state, metrics = advance(state, blocks(5))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.7 * losses[0] and int(state.step) == 30
    assert not optax.tree.norm(jax.tree.map(np.subtract, params, state.params)) == 0

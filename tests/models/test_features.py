"""A target shows what its layers read: what a model gives that ends before that layer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import FAMILIES
from references import draw

from jspec import Model, ModelConfig, Shape, from_linen, transformer
from jspec.models.transformer import with_hidden_states

KINDS = {"llama": {}, **{name: FAMILIES[name] for name in ("gemma3", "opt")}}
LAYERS = 3
ROWS, LENGTH = 2, 9
TOKENS = draw((ROWS, LENGTH), seed=5)
PLACES = np.broadcast_to(np.arange(LENGTH), (ROWS, LENGTH))
CAUSAL = np.tril(np.ones((LENGTH, LENGTH), bool))


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    sizes = {
        "vocab_size": 61,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "max_position_embeddings": 32,
    }
    return transformer(ModelConfig(**{**sizes, **KINDS[request.param]}))


@pytest.fixture(scope="module")
def params(model):
    return jax.jit(model.init)(jax.random.key(3))


def run(model, params):
    return jax.jit(model.forward)(params, TOKENS, PLACES, CAUSAL)


def cut(model: Model, layer: int) -> Model:
    """The model that ends before `layer`, and has no last norm."""
    config = dataclasses.replace(model.config, num_hidden_layers=layer, final_norm=False)
    return transformer(config)


def test_a_layers_features_are_what_a_model_gives_that_ends_before_it(model, params):
    shown = run(with_hidden_states(model, range(LAYERS + 1)), params).hidden_states
    first = model.module.apply({"params": params}, TOKENS, PLACES, method="embed")
    np.testing.assert_array_equal(shown[0], first)
    for layer in range(1, LAYERS + 1):
        np.testing.assert_allclose(
            shown[layer], run(cut(model, layer), params).hidden, rtol=1e-5, atol=1e-5
        )


def test_they_come_in_the_order_in_which_they_are_asked_for_and_change_nothing_else(model, params):
    every = run(with_hidden_states(model, range(LAYERS + 1)), params)
    some = run(with_hidden_states(model, (3, 1)), params)
    np.testing.assert_array_equal(
        some.hidden_states, [every.hidden_states[3], every.hidden_states[1]]
    )
    alone = run(model, params)
    assert alone.hidden_states == ()
    jax.tree.map(
        np.testing.assert_array_equal, (alone.hidden, alone.block), (some.hidden, some.block)
    )


def test_what_shows_nothing_computes_nothing_more(model, params):
    def program(model):
        return jax.jit(model.forward).lower(params, TOKENS, PLACES, CAUSAL).as_text()

    assert program(with_hidden_states(with_hidden_states(model, (1,)), ())) == program(model)
    assert program(with_hidden_states(model, (1,))) != program(model)


def test_a_model_whose_layers_are_computed_again_shows_the_same_with_the_same_gradient(
    model, params
):
    again = transformer(model.config, remat=True, hidden_state_layers=(1, 3))

    def loss(params, model):
        shown = model.forward(params, TOKENS, PLACES, CAUSAL).hidden_states
        return sum(jnp.square(x).sum() for x in shown)

    found, expected = (
        jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, kind)
        for kind in (again, with_hidden_states(model, (1, 3)))
    )
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4), found, expected
    )


@pytest.mark.parametrize("layer", [-1, LAYERS + 1])
def test_a_layer_that_there_is_not_is_refused(model, layer):
    with pytest.raises(ValueError, match=rf"^layer {layer} of the target .* layers 0 to 2, and 3"):
        transformer(model.config, hidden_state_layers=(0, layer))


def test_a_module_that_is_not_ours_is_refused(model):
    shape = Shape(
        vocab_size=61,
        num_hidden_layers=LAYERS,
        num_key_value_heads=2,
        head_dim=4,
        max_position_embeddings=32,
    )
    with pytest.raises(
        ValueError, match="^model=CheckedModel: only models of jspec.transformer return"
    ):
        with_hidden_states(from_linen(model.module, shape), (1,))

"""A smaller model cut out of a larger one."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jspec import transformer
from jspec.config import ModelConfig
from jspec.formats.huggingface import load
from jspec.parallel.sharding import read_mesh
from jspec.training.loading import load_student
from jspec.training.pruning import SIZES, first_layers, prune, spread_layers
from jspec.training.recipe import Distillation

CONFIG = ModelConfig(
    vocab_size=37,
    hidden_size=24,
    intermediate_size=20,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=3,
    head_dim=6,
    max_position_embeddings=64,
)
SMALL = replace(
    CONFIG,
    hidden_size=16,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
OPT = replace(
    CONFIG, num_key_value_heads=6, tie_word_embeddings=True, attention_bias=True, out_bias=True,
    mlp_bias=True, learned_positions=True, norm="layer", hidden_act="relu", gated=False,
)  # fmt: skip
QWEN = replace(CONFIG, use_qk_norm=True, tie_word_embeddings=True)
WINDOWED = replace(CONFIG, sliding_window=3, sliding_layers=(0, 1))
PLACES, MASK = jnp.arange(9)[None], jnp.tril(jnp.ones((9, 9), bool))


def random(config: ModelConfig, seed: int = 0) -> dict:
    """Parameters of which every one is drawn, norms and biases as well."""
    flat = flatten_dict(transformer(config).init(jax.random.key(seed)))
    rng = np.random.default_rng(seed)
    return unflatten_dict({path: x + 0.1 * rng.normal(size=x.shape) for path, x in flat.items()})


def logits(params: dict, config: ModelConfig) -> np.ndarray:
    model = transformer(config)
    tokens = jax.random.randint(jax.random.key(1), PLACES.shape, 0, config.vocab_size)
    return np.asarray(model.logits(params, model.forward(params, tokens, PLACES, MASK).hidden))


def widened(params: dict, small: ModelConfig, config: ModelConfig, layers: tuple) -> dict:
    """Parameters of the shape `config` that hold those of `small` in places of their own, zeros
    everywhere else, and layers between that do nothing."""
    names = flatten_dict(transformer(config).axes())
    shapes = flatten_dict(jax.eval_shape(transformer(config).init, jax.random.key(0)))
    flat = flatten_dict(params)
    found = {path: np.zeros(x.shape, np.float32) for path, x in shapes.items()}

    def spans(groups: np.ndarray, length: int) -> np.ndarray:
        return (groups[:, None] * length + np.arange(length)).reshape(-1)

    for number, layer in enumerate(layers):
        rng = np.random.default_rng(layer)
        groups = np.sort(
            rng.choice(config.num_key_value_heads, small.num_key_value_heads, replace=False)
        )
        neurons = np.sort(
            rng.choice(config.intermediate_size, small.intermediate_size, replace=False)
        )
        where = {
            "num_attention_heads": spans(
                groups, config.num_attention_heads // config.num_key_value_heads * config.head_dim
            ),
            "num_key_value_heads": spans(groups, config.head_dim),
            "intermediate_size": neurons,
        }
        for path, x in flat.items():
            if path[0] == f"layer_{number}":
                into = found[f"layer_{layer}", *path[1:]]
                axes = tuple(names[f"layer_{layer}", *path[1:]]) or (None,) * x.ndim
                at = [where.get(a, np.arange(n)) for a, n in zip(axes, into.shape, strict=True)]
                into[np.ix_(*at)] = x
    for path, x in flat.items():
        if not path[0].startswith("layer_"):
            found[path] = np.asarray(x)
    return unflatten_dict(found)


@pytest.mark.parametrize(
    "config", [CONFIG, OPT, QWEN, WINDOWED], ids=["llama", "opt", "qwen", "windowed"]
)
def test_what_does_nothing_is_what_is_cut(config):
    """A small model inside a larger one, whose other heads, neurons and layers are zero: the two
    compute the same, and cutting finds the small one again."""
    # Layers 1 and 3 stay, of which the windowed one has the first as a local one.
    local = (0,) if config.sliding_layers else ()
    small = replace(
        config, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=config.num_attention_heads // 3 * 2,
        num_key_value_heads=config.num_key_value_heads // 3 * 2, sliding_layers=local,
    )  # fmt: skip
    inner, layers = random(small), (1, 3)
    outer = widened(inner, small, config, layers)
    np.testing.assert_allclose(logits(outer, config), logits(inner, small), atol=1e-4)
    again = flatten_dict(prune(outer, config, small, layers=layers))
    assert set(again) == set(flatten_dict(inner))
    for path, x in flatten_dict(inner).items():
        np.testing.assert_array_equal(again[path], np.asarray(x, np.float32), err_msg=str(path))


@pytest.mark.parametrize("config", [CONFIG, OPT, QWEN], ids=["llama", "opt", "qwen"])
def test_a_narrower_model_has_the_shapes_that_it_should(config):
    small = replace(
        SMALL, **{name: getattr(config, name) for name in vars(config)
                  if name not in SIZES},
        num_key_value_heads=4 if config.num_key_value_heads == 6 else 2,
    )  # fmt: skip
    params = prune(random(config), config, small, layers=(0, 2))
    wanted = jax.eval_shape(transformer(small).init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, wanted)
    assert np.isfinite(logits(params, small)).all()


def test_the_same_channels_are_kept_everywhere():
    """What a channel of the residual carries must be read from the channel it was written to."""
    params = random(CONFIG)
    order = np.argsort(-np.linalg.norm(params["embedding"], axis=0))
    kept = np.sort(order[: SMALL.hidden_size])
    small = prune(params, CONFIG, SMALL, layers=(0, 1))
    np.testing.assert_array_equal(small["embedding"], params["embedding"][:, kept])
    np.testing.assert_array_equal(
        small["layer_1"]["feedforward_norm"]["weight"],
        params["layer_1"]["feedforward_norm"]["weight"][kept],
    )


def test_layers_that_stay():
    assert first_layers(3, 8) == (0, 1, 2)
    assert spread_layers(3, 9) == (0, 4, 8)
    assert spread_layers(1, 9) == (0,)
    assert spread_layers(4, 4) == (0, 1, 2, 3)


@pytest.mark.parametrize("parent", ["target", "folder"])
@pytest.mark.parametrize("mesh", [None, "data=4,fsdp=2"])
def test_a_recipe_cuts_its_draft_out_of_its_parent(parent, mesh, models):
    target = load(models / "target")
    config = target.model.config
    model = replace(config, num_hidden_layers=1, intermediate_size=config.intermediate_size // 2)
    named = parent if parent == "target" else str(models / "target")
    recipe = Distillation(
        name="cut", target="zoo:target", model=model, parent=named, parent_layers="first"
    )
    found = load_student(recipe, target, read_mesh(mesh) if mesh else None)
    assert found.model.config == model and found.family == target.family
    expected = prune(target.params, config, model, layers=(0,))
    jax.tree.map(np.testing.assert_array_equal, found.params, expected)
    cut = not found.params["layer_0"]["feedforward"]["up"]["weight"].is_fully_replicated
    assert cut == bool(mesh)


def test_a_mesh_that_does_not_divide_what_is_cut_out_is_refused(models):
    target = load(models / "target")
    model = replace(target.model.config, num_hidden_layers=1, intermediate_size=6)
    recipe = Distillation(name="cut", target="zoo:target", model=model, parent="target")
    with pytest.raises(ValueError, match="does not divide intermediate_size=6"):
        load_student(recipe, target, read_mesh("tensor=8"))


@pytest.mark.parametrize(
    ("change", "layers", "said"),
    [
        ({"hidden_size": 32}, (0, 1), "^hidden_size=32: the larger model has 24"),
        ({"head_dim": 8}, (0, 1), "^head_dim=8: a pruned model has"),
        ({"num_key_value_heads": 1}, (0, 1), "^num_attention_heads=4, num_key_value_heads=1"),
        ({}, (0,), "^layers="),
        ({}, (0, 4), "^layers="),
        (
            {"sliding_window": 3, "sliding_layers": (0,)},
            (0, 1),
            "^sliding_window=3: a pruned model has the sliding_window",
        ),
    ],
)
def test_a_shape_that_cannot_be_cut_is_refused(change, layers, said):
    with pytest.raises(ValueError, match=said):
        prune(random(CONFIG), CONFIG, replace(SMALL, **change), layers=layers)

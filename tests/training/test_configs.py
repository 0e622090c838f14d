"""Recipes for real models, as far as shapes go: nothing of their size is ever made."""

import functools
import math
import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from jspec import transformer
from jspec.formats.families import read_config
from jspec.models.heads import HeadParams
from jspec.models.protocol import LinenPart
from jspec.models.transformer import TransformerModel, with_hidden_states
from jspec.parallel.sharding import REPLICATED, RULES, check, shardings
from jspec.plan.shapes import SHAPES
from jspec.plan.sizes import parameters_of
from jspec.training.config_files import read_recipe
from jspec.training.data import Batch
from jspec.training.objectives import in_dtype
from jspec.training.pruning import spread_layers
from jspec.training.recipe import Distillation
from jspec.training.step import init_state, make_optimizer, state_shardings, train_step
from jspec.training.student import make_head, make_objective

CONFIGS = Path(__file__).parents[2] / "configs"
LLAMA = {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5}
LLAMA_3 = {
    **LLAMA,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "num_key_value_heads": 8,
    "num_attention_heads": 32,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
QWEN_3 = {
    "model_type": "qwen3",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000.0,
    "head_dim": 128,
    "num_key_value_heads": 8,
}

OPT = {"model_type": "opt", "vocab_size": 50272, "max_position_embeddings": 2048}


def sizes(width: int, feedforward: int, layers: int, **more: object) -> dict:
    return {
        "hidden_size": width,
        "intermediate_size": feedforward,
        "num_hidden_layers": layers,
        **more,
    }


# What the models' own config.json files say, target and draft; a head depends on its target alone,
# and what the recipe shapes itself has no file.
PAIRS = {
    "llama2_13b_68m": (
        {**LLAMA, **sizes(5120, 13824, 40, vocab_size=32000, num_attention_heads=40),
         "max_position_embeddings": 4096},
        {**LLAMA, **sizes(768, 3072, 2, vocab_size=32000, num_attention_heads=12),
         "max_position_embeddings": 2048},
    ),
    "llama31_8b_1b": (
        {**LLAMA_3, **sizes(4096, 14336, 32)},
        {**LLAMA_3, **sizes(2048, 8192, 16, tie_word_embeddings=True, head_dim=64)},
    ),
    "llama31_8b_eagle3": ({**LLAMA_3, **sizes(4096, 14336, 32)}, None),
    "qwen3_8b_06b": (
        {**QWEN_3, **sizes(4096, 12288, 36, num_attention_heads=32)},
        {**QWEN_3, **sizes(1024, 3072, 28, num_attention_heads=16, tie_word_embeddings=True)},
    ),
    "llama65b_wide796m": (
        {**LLAMA, **sizes(8192, 22016, 80, vocab_size=32000, num_attention_heads=64),
         "max_position_embeddings": 2048},
        None,
    ),
    "llama2_70b_wide796m": (
        {**LLAMA, **sizes(8192, 28672, 80, vocab_size=32000, num_attention_heads=64),
         "num_key_value_heads": 8, "max_position_embeddings": 4096},
        None,
    ),
    "opt66b_125m": (
        {**OPT, "hidden_size": 9216, "ffn_dim": 36864, "num_hidden_layers": 64,
         "num_attention_heads": 72, "word_embed_proj_dim": 9216},
        {**OPT, "hidden_size": 768, "ffn_dim": 3072, "num_hidden_layers": 12,
         "num_attention_heads": 12, "word_embed_proj_dim": 768},
    ),
}  # fmt: skip


@pytest.fixture(params=PAIRS)
def recipe(request) -> Distillation:
    return read_recipe(CONFIGS / f"{request.param}.py", Distillation)


def models(recipe: Distillation) -> tuple[TransformerModel, LinenPart]:
    target, draft = PAIRS[recipe.name]
    target = transformer(read_config(target))
    if recipe.head:
        return target, make_head(recipe.head, target.config)
    if recipe.model:
        return target, transformer(recipe.model, remat=recipe.remat)
    return target, transformer(read_config(draft), remat=recipe.remat)


def mesh_of(recipe: Distillation) -> AbstractMesh:
    named = dict(part.split("=") for part in recipe.mesh.split(","))
    sizes = {axis: int(named.get(axis, 1)) for axis in ("data", "fsdp", "tensor")}
    return AbstractMesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes)
    )


def held(arrays, homes, dtype=None) -> int:
    """Bytes of a device."""
    return sum(
        math.prod(home.shard_shape(x.shape)) * jnp.dtype(dtype or x.dtype).itemsize
        for x, home in zip(jax.tree.leaves(arrays), jax.tree.leaves(homes), strict=True)
    )


def test_a_config_names_what_a_device_must_hold(recipe):
    target, draft = models(recipe)
    mesh = mesh_of(recipe)
    rules = REPLICATED if recipe.replicated else RULES
    check(mesh, target.module, RULES)
    check(mesh, draft.module, rules)
    teacher, student = (jax.eval_shape(model.init, jax.random.key(0)) for model in (target, draft))
    lie = [shardings(mesh, target.axes(), RULES), shardings(mesh, draft.axes(), rules)]
    state = jax.eval_shape(functools.partial(init_state, optimizer=make_optimizer(recipe)), student)
    laid = jax.tree.map(
        lambda x, home: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=home), student, lie[1]
    )
    homes = state_shardings(state, laid, NamedSharding(mesh, jax.sharding.PartitionSpec()))
    bytes_held = (
        held(teacher, lie[0], recipe.teacher_dtype)
        + held(state, homes)
        + held(student, lie[1])  # the gradients
    )
    said = re.search(r"([\d.]+) GB of each", (CONFIGS / f"{recipe.name}.py").read_text())
    assert bytes_held / 1e9 == pytest.approx(float(said[1]), abs=0.06)


@pytest.mark.slow
def test_a_step_of_real_size_has_shapes_that_fit(recipe):
    target, draft = models(recipe)
    whole, targets = ((recipe.batch_size, recipe.sequence_length + more) for more in (1, 0))
    batch = Batch(
        *(jax.ShapeDtypeStruct(whole, jnp.int32) for _ in range(2)),
        *(jax.ShapeDtypeStruct(targets, jnp.float32) for _ in range(2)),
        jax.ShapeDtypeStruct(whole[:1], jnp.int32),
    )
    rule = make_optimizer(recipe)
    teacher, params = (jax.eval_shape(model.init, jax.random.key(0)) for model in (target, draft))
    frozen = teacher
    if recipe.head:
        target = with_hidden_states(target, draft.layers)
        frozen = HeadParams((), teacher, jax.ShapeDtypeStruct((draft.draft_vocab_size,), jnp.int32))
    objective = make_objective(draft, recipe, target)
    state = jax.eval_shape(functools.partial(init_state, optimizer=rule), params)
    advance = functools.partial(
        train_step, objective=in_dtype(objective, recipe.compute_dtype), optimizer=rule
    )
    after, metrics = jax.eval_shape(advance, state, frozen, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert metrics["grad_norm"].total.shape == ()
    assert metrics["acceptance_rate"].total.dtype == jnp.float32


@pytest.mark.parametrize("name", ["llama65b_wide796m", "llama2_70b_wide796m"])
def test_a_draft_of_the_paper_has_its_parameters_and_its_parents_heads(name):
    recipe = read_recipe(CONFIGS / f"{name}.py", Distillation)
    shape = replace(
        SHAPES["wide-796m"],
        max_position_embeddings=recipe.model.max_position_embeddings,
        norm_eps=recipe.model.norm_eps,
    )
    assert recipe.model == shape
    assert parameters_of(recipe.model) / 1e6 == pytest.approx(796.3, rel=1e-3)
    # Attention is wider than the model, as it is in the parent that it is cut out of.
    parent = SHAPES["llama2-7b"]
    ours = recipe.model
    assert ours.num_attention_heads == parent.num_attention_heads
    assert ours.intermediate_size == parent.intermediate_size
    assert ours.num_attention_heads * ours.head_dim == parent.hidden_size > ours.hidden_size
    assert spread_layers(ours.num_hidden_layers, parent.num_hidden_layers) == (0, 8, 16, 23, 31)

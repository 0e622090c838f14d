"""Speculation equals plain decoding for models of every family, past their windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import FAMILIES, WINDOW
from references import draw
from texts import (
    CONTEXT,
    CUTS,
    Batch,
    Candidate,
    disagreements,
    near,
    plain_text,
    settings,
    sharp,
    teach,
)
from texts import speculative_text as speculate

from jspec import (
    GenerationOutput,
    Model,
    ModelConfig,
    SmallModelDrafter,
    Tree,
    pad_prompts,
    transformer,
)
from jspec.models.protocol import Params
from jspec.parallel.sharding import make_mesh, shardings

TOKENS = 40
TEMPERATURES = (0.0, 0.7, 1.0, 1.5, 0.3, 1.0)
# The others differ from these in little that speculation touches.
PLAINLY = ("gemma2",)


def model(**changes):
    sizes = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": CONTEXT,
    }
    return transformer(ModelConfig(**{**sizes, **changes}))


@pytest.fixture(scope="module")
def batch():
    """Prompts of 1 to 70 tokens, so that one takes two chunks, each with a way of its own to cut
    the law or to penalise."""
    rows = [draw(length, seed=length).tolist() for length in (1, 9, 30, 70, 5, 12)]
    ways = [
        {"temperature": temperature, **cut}
        for temperature, cut in zip(TEMPERATURES, (*CUTS, CUTS[-1]), strict=True)
    ]
    return Batch(
        pad_prompts(rows, context_length=CONTEXT, max_new_tokens=TOKENS),
        jax.random.split(jax.random.key(61), len(rows)),
        settings(ways, stop_token_ids=()),
    )


@pytest.mark.parametrize(
    "family",
    [f if f in PLAINLY else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES],
)
def test_speculation_equals_plain_decoding_in_every_family(family, batch):
    target = model(**FAMILIES[family])
    params = sharp(jax.jit(target.init)(jax.random.key(62)))
    draft = jax.jit(near)(params, jax.random.key(63), 0.1)
    plain = plain_text(target, params, batch, tokens=TOKENS)
    written = speculate(target, params, batch, Candidate(drafter(target), draft), tokens=TOKENS)
    assert_plain(target, params, batch, plain, written)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_on_a_mesh_is_what_it_is_without(family, batch):
    target = model(**{**FAMILIES[family], "vocab_size": 64, "num_key_value_heads": 4})
    params = sharp(jax.jit(target.init)(jax.random.key(62)))
    draft = jax.jit(near)(params, jax.random.key(63), 0.1)
    plain = plain_text(target, params, batch, tokens=TOKENS)
    mesh = make_mesh(data=2, tensor=4)
    placed = [jax.device_put(x, shardings(mesh, target.axes())) for x in (params, draft)]
    with jax.set_mesh(mesh):
        written = speculate(
            target, placed[0], batch, Candidate(drafter(target), placed[1]), tokens=TOKENS
        )
    assert_plain(target, params, batch, plain, written)


def drafter(target: Model) -> SmallModelDrafter:
    return SmallModelDrafter(target, Tree.branching((2, 2, 1)))


def assert_plain(
    target: Model, params: Params, batch: Batch, plain: GenerationOutput, written: GenerationOutput
) -> None:
    """The texts are plain decoding's, and say something: whole paths are kept, and some not."""
    ties, parted = disagreements(target, params, batch, plain, written)
    print(f"{ties} near-ties, {written.acceptance_length:.2f} acceptance length")
    assert not parted
    assert ties <= 1
    assert np.all(written.length == TOKENS)
    assert 1.3 < written.acceptance_length < 3.9
    assert np.asarray(written.accepted_by_position)[:, -1].any()


@pytest.mark.parametrize("layers", [(0,), (0, 1)])
def test_a_token_is_seen_as_far_as_the_windows_reach_and_no_further(layers):
    target = model(sliding_window=WINDOW, sliding_layers=layers)
    params = jax.jit(target.init)(jax.random.key(64))
    tokens = draw((1, 20))
    changed = jnp.asarray(tokens).at[0, 5].add(1)
    moved = teach(params, tokens, model=target) != teach(params, changed, model=target)
    seen = np.flatnonzero(np.asarray(moved).any(axis=(0, 2)))
    # A window in each of L layers reaches L times its length less one.
    last = 19 if len(layers) < 2 else 5 + 2 * (WINDOW - 1)
    np.testing.assert_array_equal(seen, np.arange(5, last + 1))


def test_every_parameter_has_names_for_its_axes():
    for changes in FAMILIES.values():
        target = model(**changes)
        shapes = jax.eval_shape(target.init, jax.random.key(0))
        names = jax.tree.leaves(target.axes(), is_leaf=lambda leaf: not isinstance(leaf, dict))
        ranks = [len(shape.shape) for shape in jax.tree.leaves(shapes)]
        assert [len(spec) for spec in names] == ranks

"""Weights that a dtype cannot hold are refused, and not made infinite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ours import write_original

from jspec import load
from jspec.formats.huggingface import save
from jspec.parallel.sharding import make_mesh

LARGE = 70_000.0


@pytest.fixture
def large(tmp_path):
    """A model one of whose weights is beyond float16."""
    model, params, folder = write_original(tmp_path / "model")
    down = params["layer_1"]["feedforward"]["down"]
    layer = {
        **params["layer_1"]["feedforward"],
        "down": {"weight": down["weight"].at[2, 3].set(-LARGE)},
    }
    params = {**params, "layer_1": {**params["layer_1"], "feedforward": layer}}
    return model, params, folder


SAID = (
    r"^dtype='float16': model\.layers\.1\.mlp\.down_proj\.weight .*holds 70000, and float16 ends "
    "at 65504: take bfloat16 or float32$"
)


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_weights_beyond_float16_are_refused_when_they_are_read(stored, large):
    model, params, folder = large
    save(folder, model, params, dtype=stored)
    for dtype in ("float32", "bfloat16"):
        assert np.all(np.isfinite(load(folder, dtype=dtype).params["embedding"]))
    said = SAID.replace("70000", "70144") if stored == "bfloat16" else SAID
    with pytest.raises(ValueError, match=said):
        load(folder, dtype="float16")
    mesh = make_mesh(data=8)
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=said):
        load(folder, dtype="float16", mesh=mesh)


def test_weights_beyond_float16_are_refused_when_they_are_written(large, tmp_path):
    model, params, _ = large
    with pytest.raises(ValueError, match=SAID):
        save(tmp_path / "other", model, params, dtype="float16")
    assert not (tmp_path / "other").exists()


def test_infinite_weights_and_those_within_the_range_are_what_they_are(tmp_path):
    model, params, folder = write_original(tmp_path / "model")
    params = {
        **params,
        "embedding": params["embedding"].at[0, :2].set(jnp.array([65504.0, jnp.inf])),
    }
    save(folder, model, params)
    read = load(folder, dtype="float16").params["embedding"]
    np.testing.assert_array_equal(read[0, :2], [65504, np.inf])

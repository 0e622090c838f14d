"""Programs compiled for TPU slices that are not there; left out where libtpu is not installed."""

import json
from dataclasses import replace

import jax.numpy as jnp
import pytest

from jspec import transformer
from jspec.cli.main import main
from jspec.config import ModelConfig
from jspec.models.heads import fspad
from jspec.plan.compiled import NODES, compile_passes
from jspec.plan.gate import check_launch
from jspec.plan.hardware import ACCELERATORS, devices_of, mesh_on
from jspec.plan.programs import cache_shapes, model_passes, parameter_shapes
from jspec.plan.shapes import SHAPES
from jspec.plan.sources import TextLengths

pytest.importorskip("libtpu")
PROGRAMS = ["prefill", "refill", "insert", "round", "commit", "generation", "step"]
TARGET = ModelConfig(
    vocab_size=512,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=128,
    max_position_embeddings=512,
)
DRAFT = ModelConfig(
    vocab_size=512,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=128,
    max_position_embeddings=512,
)


@pytest.mark.parametrize(
    ("hardware", "chips"), [("v5e:1x1", 1), ("v5e:2x2", 4), ("v4:2x2x1", 4), ("v6e:2x4", 8)]
)
def test_a_slice_has_its_chips(hardware, chips):
    assert len(devices_of(hardware)) == chips


def test_a_slice_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="hardware='v5e:3x5': libtpu knows no such slice"):
        devices_of("v5e:3x5")


@pytest.mark.parametrize("head", [False, True], ids=["model", "head"])
def test_every_program_of_a_launch_passes_the_gate(head):
    mesh = mesh_on(devices_of("v5e:2x2"), {"data": 2, "tensor": 2})
    part = fspad(replace(TARGET, num_hidden_layers=1)) if head else transformer(DRAFT)
    found = list(
        check_launch(
            transformer(TARGET),
            part,
            mesh,
            ACCELERATORS["v5e"],
            TextLengths(64, 64),
            batch=4,
            training=(128, 4),
            tick=lambda said: None,
        )  # fmt: skip
    )
    assert [one.program for one in found] == PROGRAMS
    for one in found:
        # So small a model's activations are no small part of what it reads.
        assert one.problem == "" or "reads" in one.problem
        assert one.memory > 0 and one.aliased >= 0.98 * one.donated
    exchanges = {one.program: one.collectives for one in found}
    assert exchanges["commit"] == 0 < exchanges["round"]


def test_a_plan_is_compiled(capsys):
    words = ["plan", "--target", "qwen3-0.6b", "--drafts", "layers=1,width=256,channels=128"]
    assert main([*words, "--hardware", "v5e:2x2", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["drafts"]
    assert found["costs"]["source"].startswith("compiled")
    assert found["fits"] and 0 < found["draft_level_ms"] < found["plain_ms"]


def test_a_mesh_of_another_size_is_refused(capsys):
    words = ["plan", "--target", "qwen3-0.6b", "--hardware", "v5e:2x2", "--mesh", "tensor=8"]
    assert main([*words, "--drafts", "layers=1"]) == 2
    assert "mesh='tensor=8' has 8 devices, and the slice 4" in capsys.readouterr().err


def test_what_does_not_fit_a_slice_is_refused_before_it_is_compiled(capsys):
    words = ["plan", "--target", "llama3.1-8b", "--hardware", "v5e:1x1", "--dtype", "float32"]
    assert main([*words, "--drafts", "layers=1,width=256,channels=128"]) == 2
    said = capsys.readouterr().err
    assert "GB of each device" in said and "compiling" not in said


def test_what_a_pass_demands_lies_between_those_of_fewer_and_of_more_rows():
    """The lines that costs of trees are taken from, held against programs of their own."""
    chip, mesh = ACCELERATORS["v5e"], mesh_on(devices_of("v5e:2x2"), {"tensor": 4})
    model = transformer(SHAPES["qwen3-0.6b"])
    cache = cache_shapes(model.config, mesh, 4, 1024, jnp.bfloat16)
    passes = model_passes(model, parameter_shapes(model, mesh, "bfloat16"), cache, mesh)

    def points(*rows: int) -> dict[int, float]:
        how = {"layers": model.config.num_hidden_layers, "name": "it", "tick": lambda said: None}
        return dict(compile_passes(passes, rows, **how).points(chip))

    told, found = points(*NODES), points(8, 32)
    assert [told[8], told[32]] == pytest.approx([found[8], found[32]], rel=0.03)

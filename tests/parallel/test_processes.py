"""Two processes, with four devices each, load and write as one."""

import functools
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import processes
import pytest
import tiny_zoo
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

import jspec
from jspec.formats.families import FAMILIES
from jspec.formats.huggingface import load, save

pytestmark = pytest.mark.law

MEGABYTE = processes.MEGABYTE
SCRIPT = Path(processes.__file__)


def begin(*arguments: object, count: int = 2, devices: int = 4) -> list[subprocess.Popen]:
    """Starts the script in `count` processes that know of each other."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    told = {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PLATFORMS": "cpu",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
        "--xla_backend_optimization_level=0",
    }
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    pipe = subprocess.PIPE
    return [
        subprocess.Popen(
            command,
            env={**os.environ, **told, "JAX_PROCESS_ID": str(process)},
            stdout=pipe,
            stderr=pipe,
        )
        for process in range(count)
    ]


def launch(
    *arguments: object, count: int = 2, devices: int = 4
) -> list[subprocess.CompletedProcess]:
    """Runs the script in `count` processes that know of each other, to the end."""
    done = []
    for process in begin(*arguments, count=count, devices=devices):
        out, err = process.communicate(timeout=240)
        done.append(subprocess.CompletedProcess(arguments, process.returncode, out, err))
    return done


def said(process: subprocess.CompletedProcess) -> dict:
    """The last line; what carries messages between CPUs speaks there too."""
    return json.loads(process.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    model = jspec.transformer(jspec.ModelConfig(64, 32, 48, 2, 4, 4, 8, 128))
    folder = tmp_path_factory.mktemp("small") / "model"
    save(folder, model, jax.jit(model.init)(jax.random.key(3)))
    return folder


@pytest.fixture(scope="module")
def big(tmp_path_factory) -> Path:
    """A model of 256 MB and a little, of zeros."""
    config = jspec.ModelConfig(64, 1024, 4096, 4, 16, 16, 64, 128)
    model = jspec.transformer(config)
    folder = tmp_path_factory.mktemp("big") / "model"
    little = jspec.transformer(jspec.ModelConfig(64, 32, 48, 4, 4, 4, 8, 128))
    save(folder, little, little.init(jax.random.key(0)))
    shapes = flatten_dict(jax.eval_shape(model.init, jax.random.key(0)))
    save_file(
        {FAMILIES["llama"].key(path): np.zeros(x.shape, np.float32) for path, x in shapes.items()},
        folder / "model.safetensors",
    )
    told = json.loads((folder / "config.json").read_text())
    told |= {"hidden_size": 1024, "intermediate_size": 4096, "head_dim": 64}
    told |= {"num_attention_heads": 16, "num_key_value_heads": 16}
    (folder / "config.json").write_text(json.dumps(told))
    return folder


def test_a_model_that_is_cut_never_exists_whole_on_one_host(big):
    """Each process is given 0.7 of the model, and holds half of it; one alone is not enough."""
    whole = (big / "model.safetensors").stat().st_size
    room = int(0.7 * whole / MEGABYTE)
    for process in launch("load_within", big, "cut", room):
        assert process.returncode == 0, process.stderr.decode()[-2000:]
        assert said(process)["held"] < 0.51 * whole
    (alone,) = launch("load_within", big, "whole", room, count=1)
    assert alone.returncode != 0 and not alone.stdout


@pytest.mark.slow
def test_two_processes_write_what_one_writes(small):
    one = load(small)
    expected = np.asarray(processes.written(one, one).tokens).tolist()
    for process in launch("write_text", small):
        assert process.returncode == 0, process.stderr.decode()[-2000:]
        assert said(process) == {"devices": 8, "tokens": expected}


def test_two_processes_cut_the_same_model_out_of_one_that_neither_has_whole(small):
    expected = processes.sums(load(small))
    for process in launch("cut_out", small):
        assert process.returncode == 0, process.stderr.decode()[-2000:]
        assert said(process)["sums"] == pytest.approx(expected, rel=1e-5, abs=1e-5)


RECIPE = """
from jspec.training.recipe import Distillation, TeacherData, Text


def config() -> Distillation:
    return Distillation(
        name="run", target="zoo:target", draft="zoo:wide", mesh="fsdp=2,tensor=4",
        output={output!r}, optimizer="adamw", text=Text(source={source!r}, held_out=0.3),
        teacher_data=TeacherData(
            count=4, prompt_length=4, max_new_tokens=12, batch_size=2, tree="chain:2"
        ),
        sequence_length=32, batch_size=4, steps=6, warmup_steps=1,
        evaluate_every=2, save_every=2, keep=9,
        temperatures="0,1", tree="chain:2", prompts=2, max_new_tokens=8,
    )
"""


def curve(output: Path) -> list[dict]:
    file = output / "run" / "log.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


@pytest.mark.slow
def test_two_processes_learn_as_one_though_they_are_killed_on_the_way(tmp_path):
    models = tiny_zoo.write(tmp_path / "zoo", num_attention_heads=4, num_key_value_heads=4)
    source = tmp_path / "texts.jsonl"
    words = [f"def add{i}(left): return {i * i}" for i in range(30)]
    source.write_text("".join(json.dumps({"text": " ".join(words[i:])}) + "\n" for i in range(20)))
    asked = {}
    for name in ("one", "two"):
        asked[name] = tmp_path / f"{name}.py"
        text = RECIPE.format(output=str(tmp_path / name), source=str(source))
        asked[name].write_text(text)
    (alone,) = launch("teach", models, asked["one"], count=1, devices=8)
    assert alone.returncode == 0, alone.stderr.decode()[-2000:]

    running = begin("teach", models, asked["two"])
    saved = tmp_path / "two" / "run" / "checkpoints" / "2"
    while not saved.is_dir() and running[0].poll() is None:
        time.sleep(0.05)
    for process in reversed(running):  # a launcher ends the others once one has died
        process.kill()
        process.communicate(timeout=60)
    assert saved.is_dir() and len(curve(tmp_path / "two")) < 3
    for process in launch("teach", models, asked["two"]):
        assert process.returncode == 0, process.stderr.decode()[-2000:]
    ours = {line["step"]: line for line in curve(tmp_path / "two")}
    theirs = {line["step"]: line for line in curve(tmp_path / "one")}
    assert sorted(ours) == sorted(theirs) == [2, 4, 6]
    for step, line in theirs.items():
        for name in ("loss", "held_out_loss", "grad_norm"):
            assert ours[step][name] == pytest.approx(line[name], rel=1e-4), (step, name)
    made = [load(tmp_path / name / "run" / "model").params for name in ("one", "two")]
    # bfloat16 keeps eight bits, of which rounding may move the last.
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2**-7, atol=1e-3), *made)


def test_a_launch_of_which_nothing_is_known_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="^distributed: .*JAX_COORDINATOR_ADDRESS"):
        jspec.join()
    for number in ("one", "²"):
        monkeypatch.setenv("JAX_PROCESS_ID", number)
        with pytest.raises(ValueError, match=f"^JAX_PROCESS_ID='{number}'"):
            jspec.join()
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "nonsense")
    with pytest.raises(ValueError, match="^distributed: "):
        jspec.join()

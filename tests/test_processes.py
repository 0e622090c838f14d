"""Two processes, with four devices each, load and write as one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import processes
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

import jspec
from jspec.formats.families import key
from jspec.formats.huggingface import load, save

MEGABYTE = processes.MEGABYTE
SCRIPT = Path(processes.__file__)


def launch(*arguments: object, count: int = 2) -> list[subprocess.CompletedProcess]:
    """Runs the script in `count` processes that know of each other, to the end."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    running = []
    for process in range(count):
        told = {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(process),
            "JAX_PLATFORMS": "cpu",
            "JAX_DEFAULT_MATMUL_PRECISION": "highest",
            "XLA_FLAGS": flags,
        }
        command = [sys.executable, SCRIPT, *map(str, arguments)]
        pipe = subprocess.PIPE
        running.append(
            subprocess.Popen(command, env={**os.environ, **told}, stdout=pipe, stderr=pipe)
        )
    done = []
    for process in running:
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
        {key("llama", path): np.zeros(x.shape, np.float32) for path, x in shapes.items()},
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


def test_two_processes_write_what_one_writes(small):
    one = load(small)
    expected = np.asarray(processes.written(one, one).tokens).tolist()
    for process in launch("write_text", small):
        assert process.returncode == 0, process.stderr.decode()[-2000:]
        assert said(process) == {"devices": 8, "tokens": expected}


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

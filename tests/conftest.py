"""One setting for every test: the CPU's numbers as exact as they get, and nothing implicit."""

import os
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import jax
import pytest
import tiny_zoo
from ours import write_original
from texts import Batch, Candidate, candidates, mixed_batch, plain_text, sharp

from jspec import Generation, Model, ModelConfig, transformer, zoo
from jspec.bench import settings
from jspec.models.protocol import Params

os.environ["HF_HUB_OFFLINE"] = "1"
# Read when jax is imported, so it is set before. The programs are small and run a few times, so
# most of a test is compiling; optimising machine code takes a third of that.
FLAGS = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    # Takes another third off; newer ones have no such choice, and die of a flag they do not know.
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])


jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")
# Compilations are counted, so none may come from a disk.
jax.config.update("jax_enable_compilation_cache", False)


MAPS = Path("/proc/self/maps")
MANY_MAPS = 20_000


@pytest.fixture(scope="module", autouse=True)
def few_programs() -> Iterator[None]:
    """Drops compiled programs before the process runs out of memory maps, of which Linux allows
    65,530: XLA dies of that."""
    yield
    if MAPS.is_file() and len(MAPS.read_bytes().splitlines()) > MANY_MAPS:
        jax.clear_caches()


@pytest.fixture(scope="session")
def target() -> Model:
    """A random target of two layers with grouped heads."""
    return transformer(
        ModelConfig(
            vocabulary=61,
            width=32,
            feedforward=48,
            layers=2,
            heads=4,
            kv_heads=2,
            channels=8,
            context=512,
        )
    )


@pytest.fixture(scope="session")
def params(target: Model) -> Params:
    return sharp(jax.jit(target.init)(jax.random.key(11)))


@pytest.fixture(scope="session")
def drafts(target: Model, params: Params) -> dict[str, Candidate]:
    """A drafter of every kind: one that is always right, some often, and one with no relation."""
    return candidates(target, params)


@pytest.fixture(scope="session")
def batch() -> Batch:
    """Eighteen ragged prompts, one for each temperature with each way to cut the law."""
    return mixed_batch()


@pytest.fixture(scope="session")
def plain(target: Model, params: Params, batch: Batch) -> Generation:
    """What plain decoding writes for the batch, with no end of text."""
    return plain_text(target, params, batch)


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    """A small model of ours with its parameters, and the folder where it was saved."""
    return write_original(tmp_path_factory.mktemp("ours") / "model")


@pytest.fixture
def folder(original, tmp_path):
    """A copy of the saved folder, to be damaged."""
    return shutil.copytree(original[2], tmp_path / "model")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo of tiny random models."""
    return tiny_zoo.write(tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def small_zoo(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that are told of no model and no tree take tiny ones."""
    monkeypatch.setattr(zoo, "MODELS", models)
    monkeypatch.setattr(settings, "USUAL_TREE", "chain:1")
    monkeypatch.setattr(settings, "TREE", "2")
    monkeypatch.setattr(settings, "CHAIN", "chain:1")
    monkeypatch.setattr(settings, "LOOKUP", "chain:2")

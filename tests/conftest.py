"""One setting for every test: the CPU's numbers as exact as they get, and nothing implicit."""

import ctypes
import gc
import os
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
# Read when jax is imported, so it is set before. The programs are small and run a few times, so
# most of a test is compiling; optimising machine code takes a third of that.
FLAGS = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    # Takes another third off; newer ones have no such choice, and die of a flag they do not know.
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])

import jax  # noqa: E402
import pytest  # noqa: E402
import tiny_zoo  # noqa: E402
from ours import write_original  # noqa: E402
from texts import (  # noqa: E402
    Batch,
    Candidate,
    candidates,
    mixed_batch,
    plain_text,
    sharp,
)

from jspec import GenerationOutput, Model, ModelConfig, decode, transformer  # noqa: E402
from jspec.bench import settings  # noqa: E402
from jspec.formats import folder as model_folders  # noqa: E402
from jspec.models.protocol import Params  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")
# Tests write few tokens, some of them in tens of thousands of rows.
decode.NEW_TOKENS_BUCKET = 4
# Many small programs: what took longer to compile than to read is worth keeping.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def pytest_configure(config: pytest.Config) -> None:
    """Keeps compiled programs from run to run in pytest's cache, one folder for each jax, which
    `pytest --cache-clear` empties; JAX_COMPILATION_CACHE_DIR names another place.
    """
    if jax.config.jax_compilation_cache_dir is None and hasattr(config, "cache"):
        place = config.cache.mkdir(f"compiled-{jax.__version__}")
        jax.config.update("jax_compilation_cache_dir", str(place))


MAPS, PAGES = Path("/proc/self/maps"), Path("/proc/self/statm")
MANY_MAPS, MANY_BYTES = 20_000, 1.5e9


@pytest.fixture(scope="module", autouse=True)
def few_programs() -> Iterator[None]:
    """Drops compiled programs before the process runs out of memory maps, of which Linux allows
    65,530 (XLA dies of that), and before it holds memory that the next process needs."""
    yield
    if not MAPS.is_file():
        return
    held = int(PAGES.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if held > MANY_BYTES or len(MAPS.read_bytes().splitlines()) > MANY_MAPS:
        jax.clear_caches()
        gc.collect()
        # What was freed goes back to the system only where the C library is told to give it.
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)


@pytest.fixture(scope="session")
def target() -> Model:
    """A random target of two layers with grouped heads."""
    return transformer(
        ModelConfig(
            vocab_size=61,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=512,
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
    """Thirty ragged prompts, one for each temperature with each way to filter the distribution."""
    return mixed_batch()


@pytest.fixture(scope="session")
def plain(target: Model, params: Params, batch: Batch) -> GenerationOutput:
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
    """Commands that name no model and no tree take tiny ones."""
    monkeypatch.setattr(model_folders, "ZOO_MODELS", models)
    monkeypatch.setattr(settings, "TREE", "2")
    monkeypatch.setattr(settings, "CHAIN", "chain:1")
    monkeypatch.setattr(settings, "LOOKUP", "chain:2")

"""What a process of a launch does. Run by tests: `python processes.py WHAT FOLDER ...`."""

import dataclasses
import json
import resource
import signal
import sys
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

import jspec
from jspec.cli.main import main
from jspec.formats import folder as model_folders
from jspec.parallel.sharding import REPLICATED
from jspec.training import pruning

MEGABYTE = 2**20
STATUS = Path("/proc/self/status")
ROWS = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7], [9, 3, 2]]


def load_within(folder: str, cut: str, megabytes: str) -> None:
    """Loads a model, cut over all devices or whole, with so much memory and no more."""
    mesh = jspec.make_mesh(tensor=jax.device_count()) if cut == "cut" else None
    # Threads and compilers take their memory before the limit is set.
    jax.block_until_ready(jax.jit(lambda x: x @ x)(np.eye(64, dtype=np.float32)))
    status = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmData"))
    limit = int(status.split()[1]) * 1024 + int(megabytes) * MEGABYTE
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    signal.alarm(30)  # what runs out of memory in native code may hang where it should die
    loaded = jspec.load(folder, mesh=mesh)
    held = sum(
        piece.data.nbytes for x in jax.tree.leaves(loaded.params) for piece in x.addressable_shards
    )
    print(json.dumps({"held": held}))


def write_text(folder: str) -> None:
    """Writes text on all devices of the launch, and says what it was."""
    mesh = jspec.make_mesh(data=2, tensor=jax.device_count() // 2)
    target = jspec.load(folder, mesh=mesh)
    draft = jspec.load(folder, mesh=mesh, rules=REPLICATED)
    with jax.set_mesh(mesh):
        text = written(target, draft)
    print(json.dumps({"devices": jax.device_count(), "tokens": np.asarray(text.tokens).tolist()}))


def written(target: jspec.Checkpoint, draft: jspec.Checkpoint) -> jspec.GenerationOutput:
    context = target.model.config.max_position_embeddings
    return jspec.generate(
        target.params,
        draft.params,
        jspec.pad_prompts(ROWS, context_length=context, max_new_tokens=12),
        jax.random.split(jax.random.key(7), len(ROWS)),
        jspec.SamplingParams.create(len(ROWS), temperature=[0.0, 0.5, 1.0, 1.5]),
        target=target.model,
        drafter=jspec.SmallModelDrafter(draft.model, jspec.Tree.branching((2, 1))),
        max_new_tokens=12,
    )


def cut_out(folder: str) -> None:
    """Cuts a smaller model out of one that no process has whole, and says what its numbers sum up
    to."""
    parent = jspec.load(folder, mesh=jspec.make_mesh(fsdp=2, tensor=jax.device_count() // 2))
    print(json.dumps({"sums": sums(parent)}))


def sums(parent: jspec.Checkpoint) -> list[float]:
    """Of each parameter of half of a model's layers, heads, channels and neurons."""
    config = parent.model.config
    half = {name: getattr(config, name) // 2 for name in pruning.SIZES}
    into = dataclasses.replace(config, **half)
    layers = pruning.first_layers(into.num_hidden_layers, config.num_hidden_layers)
    cut = pruning.prune(parent.params, config, into, layers=layers)
    return [float(x.astype(float).sum()) for x in jax.tree.leaves(jax.tree.map(whole, cut))]


def whole(x: jax.Array) -> np.ndarray:
    return multihost_utils.process_allgather(x, tiled=True)


def teach(models: str, *arguments: str) -> None:
    """Distils with another zoo."""
    model_folders.ZOO_MODELS = Path(models)
    sys.exit(main(["distill", *arguments]))


if __name__ == "__main__":
    jspec.join()
    do = {"load_within": load_within, "write_text": write_text, "cut_out": cut_out, "teach": teach}
    do[sys.argv[1]](*sys.argv[2:])

"""Kills processes while they write, at random, and reads what they have left.

    python tests/kill_writers.py [--kills 200] [--seed 0] [--only KIND ...]

A process writes version after version of one thing, and says of each when it is written. It is
killed at a random moment, and another process reads: what is there must be whole, and no older than
the last version that was said to be written. The next writer goes on in the same folder.
"""

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from jspec import Tree, load, load_decision, load_head, save, save_decision  # noqa: E402
from jspec.bench import plots  # noqa: E402
from jspec.config import ModelConfig  # noqa: E402
from jspec.formats.decision import Decision  # noqa: E402
from jspec.formats.folder import read_json, write_json  # noqa: E402
from jspec.formats.heads import save_head  # noqa: E402
from jspec.models.stop_networks import DISTRIBUTION_SIZES, DistributionNetwork  # noqa: E402
from jspec.models.transformer import transformer  # noqa: E402
from jspec.training import generated_data  # noqa: E402
from jspec.training.checkpoints import Checkpoints  # noqa: E402
from jspec.training.loop import LOG, Log  # noqa: E402
from jspec.training.recipe import FeatureHead  # noqa: E402
from jspec.training.step import TrainState  # noqa: E402
from jspec.training.student import make_head  # noqa: E402
from jspec.tuning.automatic import load_tree, save_tree  # noqa: E402

CONFIG = ModelConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=32,
    max_position_embeddings=64,
)
PATIENCE = 120.0  # seconds that a process may take


class Kind(NamedTuple):
    """Something that is written.

    Attributes:
      share: of the kills.
      write: writes versions from a number on, and yields each that is written.
      read: the versions that are there, in order; raises for anything that is not whole.
    """

    share: float
    write: Callable[[Path, int], Iterator[int]]
    read: Callable[[Path], list[int]]


def filled(model, version: int):
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda x: np.full(x.shape, version, np.float32), shapes)


def one_number(params) -> int:
    numbers = {float(x) for leaf in jax.tree.leaves(params) for x in np.unique(leaf)}
    assert len(numbers) == 1, f"weights of several versions: {sorted(numbers)}"
    return int(numbers.pop())


def write_records(folder: Path, first: int) -> Iterator[int]:
    for version in itertools.count(first):
        write_json(folder / "records.json", {"version": version, "fill": [version] * 20_000})
        yield version


def read_records(folder: Path) -> list[int]:
    if not (folder / "records.json").is_file():
        return []
    found = read_json(folder / "records.json")
    assert set(found["fill"]) == {found["version"]} and len(found["fill"]) == 20_000
    return [found["version"]]


def write_models(folder: Path, first: int) -> Iterator[int]:
    model = transformer(CONFIG)
    for version in itertools.count(first):
        save(
            folder / "model", model, filled(model, version), generation_config={"version": version}
        )
        (folder / "model" / "README.md").write_text("mine")
        (folder / "model" / "notes").mkdir(exist_ok=True)
        (folder / "model" / "notes" / "one").touch()
        yield version


def read_models(folder: Path) -> list[int]:
    if not (folder / "model").exists():
        return []
    found = load(folder / "model")
    version = one_number(found.params)
    assert found.generation_config["version"] == version
    if version:  # what was beside the first is beside every later one
        assert (folder / "model" / "README.md").is_file()
        assert (folder / "model" / "notes" / "one").is_file()
    return [version]


def write_heads(folder: Path, first: int) -> Iterator[int]:
    head = make_head(FeatureHead(kind="eagle"), CONFIG)
    for version in itertools.count(first):
        save_head(folder / "head", head, filled(head, version))
        yield version


def read_heads(folder: Path) -> list[int]:
    if not (folder / "head").exists():
        return []
    model = transformer(CONFIG)
    return [one_number(load_head(folder / "head", model, filled(model, 0)).params)]


def write_decisions(folder: Path, first: int) -> Iterator[int]:
    network = DistributionNetwork(DISTRIBUTION_SIZES)
    for version in itertools.count(first):
        params = filled(network, version)
        about = {"temperatures": (float(version),), "threshold": version % 97 / 97}
        save_decision(folder, Decision(network, params, 16, **about))
        yield version


def read_decisions(folder: Path) -> list[int]:
    if not (folder / "decision.safetensors").is_file():
        return []
    found = load_decision(folder)
    version = one_number(found.params)
    assert found.temperatures == (float(version),) and found.threshold == version % 97 / 97
    return [version]


def write_trees(folder: Path, first: int) -> Iterator[int]:
    os.environ["XDG_CACHE_HOME"] = str(folder)
    for version in itertools.count(first):
        save_tree({"of": "one"}, Tree.chain(1 + version % 40), {"timed": [version] * 20_000})
        yield version


def read_trees(folder: Path) -> list[int]:
    os.environ["XDG_CACHE_HOME"] = str(folder)
    tree, files = load_tree({"of": "one"}), [*folder.rglob("*.json")]
    if tree is None:
        return []
    version = read_json(files[0])["timed"][-1]
    assert tree == Tree.chain(1 + version % 40)
    return [version]


def write_answers(folder: Path, first: int) -> Iterator[int]:
    for version in itertools.count(first):
        one = generated_data.Sample(version, list(range(200)), [version] * 2000, 0.0)
        generated_data._write(folder, [one])
        yield version


def read_answers(folder: Path) -> list[int]:
    found = sorted(generated_data._read(folder), key=lambda sample: sample.index)
    assert all(sample.tokens == [sample.index] * 2000 for sample in found)
    return [sample.index for sample in found]


def state_of(version: int) -> TrainState:
    params = {"a": jnp.full((300, 300), version, jnp.float32), "b": jnp.full((8,), version)}
    return TrainState(jnp.int32(version), params, (jax.tree.map(jnp.copy, params),))


def write_checkpoints(folder: Path, first: int) -> Iterator[int]:
    opened = Checkpoints(folder / "checkpoints", warn, keep=2)
    there = opened.restore(state_of(0))
    first = max(first, int(there.step) + 1)
    for version in itertools.count(first):
        # The score is best every now and then, so that others are left behind it.
        opened.save(version, state_of(version), score=float(version % 5))
        if version > first:
            yield version - 1


def read_checkpoints(folder: Path) -> list[int]:
    """Those that are taken; an older one may have been in removal."""
    opened = Checkpoints(folder / "checkpoints", warn, keep=2)
    states = [opened.restore(state_of(0))] if opened.steps else []
    states += [] if opened.best is None else [opened.load(opened.best, state_of(0))]
    opened.close()
    for state in states:
        assert one_number((state.params, state.optimizer)) == int(state.step)
    return sorted(int(state.step) for state in states)


def warn(text: str) -> None:
    raise AssertionError(text)


def write_logs(folder: Path, first: int) -> Iterator[int]:
    log = Log(folder)
    for version in itertools.count(first):
        log.write(version, {f"metric_{number}": version for number in range(200)})
        yield version


def read_logs(folder: Path) -> list[int]:
    lines = (folder / LOG).read_text().splitlines() if (folder / LOG).is_file() else []
    records = [json.loads(line) for line in lines]
    assert all(len(record) == 201 for record in records)
    return [record["step"] for record in records]


def write_figures(folder: Path, first: int) -> Iterator[int]:
    for version in itertools.count(first):
        paint = lambda panels, n=version: panels[0].plot(range(n % 7 + 2))  # noqa: E731
        plots.draw([plots.Figure("figure.png", str(version), paint)], folder)
        yield version


def read_figures(folder: Path) -> list[int] | None:
    from matplotlib import image

    if (folder / "figure.png").is_file():
        assert image.imread(folder / "figure.png").shape[2] == 4
    return None  # a picture does not say its version


KINDS = {
    "records": Kind(0.125, write_records, read_records),
    "models": Kind(0.175, write_models, read_models),
    "heads": Kind(0.075, write_heads, read_heads),
    "decisions": Kind(0.125, write_decisions, read_decisions),
    "trees": Kind(0.075, write_trees, read_trees),
    "answers": Kind(0.125, write_answers, read_answers),
    "checkpoints": Kind(0.175, write_checkpoints, read_checkpoints),
    "logs": Kind(0.075, write_logs, read_logs),
    "figures": Kind(0.05, write_figures, read_figures),
}
KEEPS_ALL = ("answers", "logs")
UNFINISHED = ".partial", "orbax-checkpoint-tmp"  # in the names of what is being written


def started(work: Callable[[Callable[[str], None]], None]) -> tuple[int, int]:
    """A process of its own that does `work` and tells us lines; its number, and what to read."""
    end, told = os.pipe()
    number = os.fork()
    if number:
        os.close(told)
        return number, end
    os.close(end)
    try:
        work(lambda line: os.write(told, (line + "\n").encode()))
        os._exit(0)
    except BaseException:
        os.write(told, ("failed: " + traceback.format_exc()).encode())
        os._exit(1)


def heard(end: int, lines: int | None, patience: float) -> str:
    """What a process tells us until so many lines are there, or it ends."""
    os.set_blocking(end, False)
    text, latest = b"", time.monotonic() + patience
    while time.monotonic() < latest and (lines is None or text.count(b"\n") < lines):
        try:
            part = os.read(end, 1 << 16)
        except BlockingIOError:
            time.sleep(0.0005)
            continue
        if not part:
            break
        text += part
    return text.decode()


def killed(kind: Kind, folder: Path, first: int, chance: random.Random) -> list[int]:
    """Starts a writer, kills it at a random moment, and returns what it said was written."""

    def write(tell: Callable[[str], None]) -> None:
        for version in kind.write(folder, first):
            tell(str(version))

    number, end = started(write)
    begun = time.monotonic()
    said = heard(end, chance.randrange(1, 5), PATIENCE)
    taken = (time.monotonic() - begun) / max(1, said.count("\n"))
    time.sleep(chance.random() * min(taken, 1.0))
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)
    said += heard(end, None, 5)
    os.close(end)
    if "failed:" in said:
        raise AssertionError(said)
    return [int(line) for line in said.split("\n")[:-1]]


def found(kind: Kind, folder: Path) -> list[int] | None:
    """What another process reads."""
    number, end = started(lambda tell: tell(json.dumps(kind.read(folder))))
    said = heard(end, None, PATIENCE)
    os.waitpid(number, 0)
    os.close(end)
    if not said or said.startswith("failed:"):
        raise AssertionError(said or "the reader said nothing")
    return json.loads(said)


def attack(name: str, kills: int, chance: random.Random, place: Path) -> int:
    """Kills writers of one kind; returns how many of them left something unfinished."""
    kind, folder = KINDS[name], place / name
    folder.mkdir()
    written: list[int] = []
    unfinished: set[Path] = set()
    caught = 0
    for _ in range(kills):
        said = killed(kind, folder, written[-1] + 1 if written else 0, chance)
        left = {path for path in folder.rglob("*") if any(x in path.name for x in UNFINISHED)}
        caught += bool(left - unfinished)
        unfinished |= left
        there = found(kind, folder)
        written += said
        if there is None:
            continue
        if name in KEEPS_ALL:
            assert set(written) <= set(there), f"lost {sorted(set(written) - set(there))}"
        elif written:
            assert there and there[-1] >= written[-1], f"{written[-1]} was written, {there} are"
        written += [version for version in there if version > (written or [-1])[-1]]
    return caught


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=KINDS, default=list(KINDS))
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    place, failures, total = Path(tempfile.mkdtemp()), 0, 0
    try:
        for name in asked.only:
            kills = max(1, round(asked.kills * KINDS[name].share))
            begun = time.monotonic()
            try:
                caught = attack(name, kills, random.Random(f"{asked.seed} {name}"), place)
            except AssertionError as error:
                failures += 1
                print(f"{name}: {error}")
                continue
            total += kills
            print(
                f"{name}: {kills} killed, all that was read was whole and nothing was lost; "
                f"{caught} left something unfinished ({time.monotonic() - begun:.0f} s)",
                flush=True,
            )
    finally:
        if failures:
            print(f"what failed is kept in {place}")
        else:
            shutil.rmtree(place, ignore_errors=True)
    print(f"{total} killed, {failures} kinds failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""Random damage to files: what is read is right, or one line names the file and what would do."""

import json
import random
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from outcome import attempt

import jspec
from jspec.core.tree_text import read_tree
from jspec.formats.huggingface import load

ODD = (None, "", "x", 0, -1, 1.5, 10**12, True, [], {}, [1], "float32")


def attempts(seeds: Iterable[int], folder: Path) -> Iterator[tuple[int, str, str]]:
    """Of each seed what was damaged, and its fault if it has one."""
    zoo = folder / "zoo"
    target = load(zoo / "target")
    (folder / "trees").mkdir()
    (folder / "trees" / "tree.json").write_text(json.dumps([[0], [0, 0], [1], [1, 0]]))
    kinds: dict[str, tuple[Path, Callable[[Path], Any]]] = {
        "target": (zoo / "target", lambda place: _generate(place, None)),
        "draft model": (zoo / "distilled", lambda place: _generate(target, place)),
        "eagle head": (zoo / "eagle", lambda place: _generate(target, place)),
        "fspad head": (zoo / "fspad", lambda place: _generate(target, place)),
        "tree": (folder / "trees", lambda place: read_tree(str(place / "tree.json"), 320)),
    }
    for seed in seeds:
        rng = random.Random(seed)
        kind = rng.choice(list(kinds))
        source, use = kinds[kind]
        place = folder / "damaged"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(source, place)
        file = rng.choice(sorted(path for path in place.rglob("*") if path.is_file()))
        damage = rng.choice(DAMAGES[".json" if file.suffix == ".json" else ""])
        damage(rng, file)
        yield seed, f"{kind}: {file.name}", _fault(use, place, damage.__name__)
        if seed % 200 == 199:
            jax.clear_caches()


def _generate(target: Any, draft: Any) -> Any:
    engine = jspec.Speculator.load(target, draft=draft, tree="auto" if draft is None else "chain:1")
    return engine.generate("def add", max_new_tokens=4)


def _fault(use: Callable[[Path], Any], place: Path, damage: str) -> str:
    done = attempt(lambda: use(place))
    if done.fault:
        return f"{damage}: {done.fault}"
    if isinstance(done.result, jspec.TextOutput):
        tokens = np.asarray(done.result.token_ids)
        if len(tokens) > 4 or np.any((tokens < 0) | (tokens >= 320)):
            return f"{damage}: wrote {tokens.tolist()}"
    return ""


def _cut(rng: random.Random, file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: rng.randrange(len(content) + 1)])


def _remove(_: random.Random, file: Path) -> None:
    file.unlink()


def _empty(_: random.Random, file: Path) -> None:
    file.write_bytes(b"")


def _flip(rng: random.Random, file: Path) -> None:
    content = bytearray(file.read_bytes())
    for _ in range(rng.choice((1, 1, 8))):
        # The header, where there is one, is worth more attempts than the numbers after it.
        content[rng.randrange(min(len(content), rng.choice((64, 2000, 10**9))))] = rng.randrange(
            256
        )
    file.write_bytes(content)


def _header(rng: random.Random, file: Path) -> None:
    """Another header of a file of tensors: a name, a shape, a dtype or offsets are changed."""
    content = file.read_bytes()
    if file.suffix != ".safetensors":
        return _flip(rng, file)
    (size,) = struct.unpack("<Q", content[:8])
    header = _change(rng, json.loads(content[8 : 8 + size]))
    written = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(written)) + written + content[8 + size :])
    return None


def _field(rng: random.Random, file: Path) -> None:
    """A value of a JSON file is changed, or left out."""
    file.write_text(json.dumps(_change(rng, json.loads(file.read_text()))))


def _change(rng: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.95:
        name = rng.choice(list(value)[:60])
        if rng.random() < 0.15:
            return {key: x for key, x in value.items() if key != name}
        if rng.random() < 0.1:
            return {f"{key}_" if key == name else key: x for key, x in value.items()}
        return {**value, name: _change(rng, value[name])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(min(len(value), 60))
        return [*value[:place], _change(rng, value[place]), *value[place + 1 :]]
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.6:
        return rng.choice((value + 1, value - 1, 2 * value, -value, 0))
    return rng.choice(ODD)


DAMAGES: dict[str, tuple[Callable[[random.Random, Path], Any], ...]] = {
    ".json": (_cut, _remove, _empty, _flip, _field, _field, _field, _field),
    "": (_cut, _remove, _empty, _flip, _header, _header),
}

"""Trees that were found before, kept per machine and pair."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jspec.core.tree import Tree
from jspec.formats.decision import WEIGHTS
from jspec.formats.folder import read_json, write_json


def kept_below() -> Path:
    """The folder: below `XDG_CACHE_HOME`, or `.cache` of the home."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "jspec" / "trees"


def fingerprint(folder: Path) -> str:
    """Of a model's files: their names, sizes and times, and what its configuration says. What
    decides when it stops may change."""
    weights = (file for file in folder.glob("*.safetensors") if file.name != WEIGHTS)
    told = [(x.name, x.stat().st_size, x.stat().st_mtime_ns) for x in weights]
    config = folder / "config.json"
    said = config.read_text(encoding="utf-8") if config.is_file() else ""
    return hashlib.sha256(json.dumps([sorted(told), said]).encode()).hexdigest()[:16]


def remembered(of: Mapping[str, Any], find: Callable[[], tuple[Tree, Mapping[str, Any]]]) -> Tree:
    """The tree that was found for what `of` says, or what `find` finds now, kept with what else it
    says of it. What cannot be kept is found again the next time."""
    said = json.loads(json.dumps(dict(of)))
    file = kept_below() / f"{hashlib.sha256(json.dumps(said).encode()).hexdigest()[:24]}.json"
    if os.access(file, os.R_OK):
        try:
            found = read_json(file)
            if found["of"] == said:
                return _tree(found["parents"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{file} does not hold a tree ({error!r}): delete it, and it is found again"
            ) from error
    tree, why = find()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"of": said, "parents": list(tree.parents), **why})
    except OSError:
        pass
    return tree


def _tree(parents: Any) -> Tree:
    """Raises `TypeError` or `ValueError` unless they are of a tree with a candidate."""
    if len(parents) < 2 or any(type(parent) is not int for parent in parents):
        raise TypeError(f"parents={parents!r}")
    return Tree(tuple(parents))

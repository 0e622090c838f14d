"""A model folder on disk: which files it has, its JSON, and how it is replaced whole."""

import contextlib
import json
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    # A network that decides was taught for the draft that was there.
    "decision.json",
    "decision.safetensors",
    *TOKENIZER_FILES,
)


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """An empty folder to write a model into, renamed to `folder` once all is written.

    A model that was there is replaced; files that are no model's are kept. A folder that holds
    something else is refused.
    """
    folder = folder.expanduser().resolve()
    _refuse(folder)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        _swap(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_json(file: Path) -> dict[str, Any]:
    """The object that a JSON file holds."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON ({error}): download or save it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__} where an object belongs")
    return content


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Writes an object as JSON that people can read; the file is there whole or not at all."""
    write_text(file, json.dumps(content, indent=2) + "\n")


def write_text(file: Path, content: str) -> None:
    """Writes a file that is there whole or not at all."""
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(content, encoding="utf-8")
    partial.replace(file)


def claim(file: Path, record: Mapping[str, Any], *, fixed: Iterable[str], what: str) -> list[str]:
    """Notes in `file` what the work in its folder hangs on.

    Args:
      fixed: the fields in which work that goes on cannot differ; what: a word for the work.

    Returns:
      How the record differs from what was noted before, in words. Raises `ValueError`, naming the
      fields, if the folder holds work that differs in a fixed one.
    """
    ours = json.loads(json.dumps(record))
    theirs = read_json(file) if file.is_file() else ours
    now, then = (flatten_dict(work, sep=".") for work in (ours, theirs))
    differing = {
        name: f"{name}={now.get(name)!r} where it has {then.get(name)!r}"
        for name in {**now, **then}
        if now.get(name) != then.get(name)
    }
    fixed = set(fixed)
    other = [said for name, said in differing.items() if name.split(".")[0] in fixed]
    if other:
        raise ValueError(
            f"{file.parent} holds another {what} ({', '.join(other)}): take another name, or go on "
            "with that one"
        )
    if jax.process_index() == 0:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, ours)
    return list(differing.values())


def _refuse(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"folder={str(folder)!r} is a file: name a folder")
    model = (folder / "config.json").is_file() and any(folder.glob("model*.safetensors"))
    if not model and any(folder.iterdir()):
        raise FileExistsError(
            f"folder={str(folder)!r} holds files but no model: name a new or an empty folder"
        )


def _swap(new: Path, folder: Path) -> None:
    if not folder.exists():
        new.rename(folder)
        return
    old = new.with_suffix(".old")
    folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    for entry in old.iterdir():
        ours = any(entry.match(pattern) for pattern in MODEL_FILES)
        if not ours and not (folder / entry.name).exists():
            entry.rename(folder / entry.name)
    shutil.rmtree(old)

"""A model folder: where it is, which files it has, its JSON, and how it is replaced whole.

All is written beside its place and renamed, so that whatever ends a process, and whoever else
writes there, a file or a model is the one before or the one after.
"""

import contextlib
import ctypes
import glob
import json
import os
import re
import shlex
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    # A stop network was trained for the draft that was there.
    "decision.json",
    "decision.safetensors",
    *TOKENIZER_FILES,
)
SINGLE, PICKLE = "model.safetensors", "pytorch_model.bin"
PARTIAL = ".partial"  # how the names of what is being written end
# Of Linux: names are relative to the working directory, and are exchanged.
AT_FDCWD, RENAME_EXCHANGE = -100, 2
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
# The models and heads that ship with the package.
ZOO, ZOO_NAMES = "zoo:", ("target", "wide", "distilled", "eagle", "fspad")
ZOO_MODELS = Path(__file__).parents[1] / "zoo" / "models"


def find(source: str | Path) -> Path:
    """The local folder of a model or a head: a folder, `zoo:NAME`, or a name on the hub.

    What is on the hub is downloaded first.
    """
    if isinstance(source, str) and source.startswith(ZOO):
        return zoo_folder(source.removeprefix(ZOO))
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(f"source={str(source)!r} is a file: give the folder that holds it")
    if isinstance(source, Path) or not HUB_NAME.fullmatch(source):
        raise FileNotFoundError(f"source={str(source)!r}: no such folder")
    return _download(source)


def zoo_folder(name: str) -> Path:
    """The folder of one of `ZOO_NAMES`."""
    if name not in ZOO_NAMES:
        raise ValueError(
            f"zoo:{name} is not in the zoo: {', '.join(ZOO + n for n in ZOO_NAMES)} are"
        )
    place = ZOO_MODELS / name
    if not (place / "config.json").is_file():
        raise FileNotFoundError(
            f"zoo:{name} has no weights in {place}: install the package again, or train them by "
            f"configs/zoo_{name}.py"
        )
    return place


def find_file(source: str | Path, name: str) -> Path:
    """A file of a model or a head; of a name on the hub nothing else is downloaded."""
    local = isinstance(source, Path) or source.startswith(ZOO) or Path(source).expanduser().exists()
    if local or not HUB_NAME.fullmatch(str(source)):
        return find(source) / name
    import huggingface_hub

    return Path(_ask_hub(str(source), lambda: huggingface_hub.hf_hub_download(str(source), name)))


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """An empty folder to write a model into, renamed to `folder` once all is written.

    A model that was there is replaced; other files are kept. Raises `FileExistsError` for a folder
    that holds something else.
    """
    folder = folder.expanduser().resolve()
    _check_replaceable(folder)
    # Under its own name once it is locked, so that nobody takes it for abandoned.
    new = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    partial = new.with_name(new.name + PARTIAL)
    with _naming(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(f".{glob.escape(folder.name)}.*{PARTIAL}"):
            if left.is_dir():
                _remove_abandoned(left)
        new.mkdir()
    try:
        with _naming(folder), locked(new):
            new.rename(partial)
            yield partial
            _swap(partial, folder)
    finally:
        for place in (new, partial):
            shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within, no other process can lock a folder; raises `BlockingIOError` where one has."""
    place = os.open(folder, os.O_RDONLY)
    try:
        _lock(place)
        yield
    finally:
        os.close(place)


@contextlib.contextmanager
def writing(file: Path) -> Iterator[Path]:
    """A place beside a file to write it to, renamed to `file` once it is written."""
    # Of its own, since another process may be writing the same file.
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
    try:
        with _naming(file):
            yield partial
            partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


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
    with writing(file) as partial:
        partial.write_text(content, encoding="utf-8")


def claim(
    file: Path,
    record: Mapping[str, Any],
    *,
    fixed: Iterable[str],
    what: str,
    finished: bool = False,
) -> list[str]:
    """Writes to `file` what the work in its folder depends on.

    Args:
      fixed: the fields that must not change when the work is resumed.
      what: names the work in errors; finished: whether nothing is left to do, so that the record
        stays what it was done by.

    Returns:
      How the record differs from the one that was there, in words. Raises `ValueError` that names
      the fields if it differs in a fixed one.
    """
    new = json.loads(json.dumps(record))
    old = read_json(file) if file.is_file() else new
    now, then = (flatten_dict(work, sep=".") for work in (new, old))
    differing = {
        name: f"{name}={now.get(name)!r} where it has {then.get(name)!r}"
        for name in {**now, **then}
        if now.get(name) != then.get(name)
    }
    fixed = set(fixed)
    other = [said for name, said in differing.items() if name.split(".")[0] in fixed]
    if other:
        raise ValueError(
            f"{file.parent} holds another {what} ({', '.join(other)}): take another name, or "
            "resume that one"
        )
    if jax.process_index() == 0 and not (finished and file.is_file()):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, new)
    return list(differing.values())


def conversion(folder: Path) -> str:
    """The command that turns a folder's one pickle into safetensors, in a shell with PyTorch."""
    source, made = (json.dumps(str(folder / name)) for name in (PICKLE, SINGLE))
    program = (
        "import torch; from safetensors.torch import save_file; "
        f'read = torch.load({source}, map_location="cpu", weights_only=True); '
        f"save_file({{key: tensor.contiguous().clone() for key, tensor in read.items()}}, {made}, "
        '{"format": "pt"})'
    )
    return f"python -c {shlex.quote(program)}"


@contextlib.contextmanager
def naming(argument: str, source: str, advice: str = "") -> Iterator[None]:
    """Errors inside become a `ValueError` that names the argument and its value."""
    try:
        yield
    except (ValueError, OSError) as error:
        reason = str(error).removeprefix(f"source={source!r}").removeprefix(":").strip()
        raise ValueError(f"{argument}={source!r}: {reason}{advice}") from error


def name_first(items: Sequence[str], count: int) -> str:
    """The first `count` of what an error lists, and the number of the rest.

    >>> name_first(["a", "b", "c"], 2)
    'a; b; and 1 more'
    """
    rest = len(items) - count
    return "; ".join([*items[:count], *([f"and {rest} more"] if rest > 0 else [])])


@contextlib.contextmanager
def _naming(place: Path) -> Iterator[None]:
    """Errors of the system inside name what is not written, and what would do."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise  # which says so already
        raise OSError(
            f"{place} is not written ({error}): make room there, or name a place that you may "
            "write to"
        ) from error


def _check_replaceable(folder: Path) -> None:
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
    """Puts a new folder in the place of another, with what that has beside a model."""
    if not folder.exists():
        try:
            new.rename(folder)
            return
        except OSError:
            if not folder.exists():
                raise
            _check_replaceable(folder)  # somebody else made it meanwhile
    for entry in _others(folder, new):
        _link(entry, new / entry.name)
    if _exchange(new, folder):
        old = new
    else:
        old = new.with_suffix(".old")
        folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            old.rename(folder)
            raise
    for entry in _others(old, folder):  # what came meanwhile
        entry.rename(folder / entry.name)
    shutil.rmtree(old, ignore_errors=True)


def _others(old: Path, new: Path) -> list[Path]:
    """What is in one folder, not in the other, and no part of a model."""
    return [
        entry
        for entry in old.iterdir()
        if not any(entry.match(pattern) for pattern in MODEL_FILES)
        and not os.path.lexists(new / entry.name)
    ]


def _link(entry: Path, place: Path) -> None:
    """Another name for a file, and for all that a folder holds; a copy where that cannot be."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.copytree(entry, place, symlinks=True, copy_function=_link_file)
    else:
        _link_file(entry, place)


def _link_file(file: str | Path, place: str | Path) -> None:
    try:
        os.link(file, place, follow_symlinks=False)
    except OSError:
        shutil.copy2(file, place, follow_symlinks=False)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two folders, so that there is no moment without either; False where the system
    cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    paths = AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other)
    return rename(*paths, RENAME_EXCHANGE) == 0


def _lock(place: int) -> None:
    """Locks an open folder or file for as long as it is open; does nothing where that cannot be."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return  # some network folders have no locks


def _remove_abandoned(folder: Path) -> None:
    """Removes what a process that was killed has left half-written."""
    with contextlib.suppress(OSError), locked(folder):
        shutil.rmtree(folder, ignore_errors=True)


def _download(name: str) -> Path:
    import huggingface_hub

    folder = _ask_hub(
        name,
        lambda: huggingface_hub.snapshot_download(
            name,
            allow_patterns=["*.json", "*.safetensors", *TOKENIZER_FILES],
            ignore_patterns=["*/*", "consolidated*"],
        ),
    )
    if not any(Path(folder).glob("*.safetensors")):
        here = name.rpartition("/")[2]
        raise FileNotFoundError(
            f"source={name!r} has no safetensors on the hub, and pickles run code and are never "
            f"opened; where it has a {PICKLE}, fetch and convert it once: hf download {name} "
            f"--local-dir {here} && {conversion(Path(here))}"
        )
    return Path(folder)


def _ask_hub(name: str, fetch: Callable[[], str]) -> str:
    """What `fetch` returns; its errors in one line."""
    try:
        return fetch()
    # Which errors the client raises depends on its release and on the transport.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"source={name!r} is no local folder, and the hub did not give it: a local folder "
            f"works without the hub ({type(error).__name__}: {reason})"
        ) from error

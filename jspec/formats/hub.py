"""Where a folder is: on this machine, or on the Hugging Face hub, which gives it."""

import re
from collections.abc import Callable
from pathlib import Path

from jspec.formats.folder import TOKENIZER_FILES
from jspec.formats.tensors import PICKLE, conversion

HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def find(source: str | Path) -> Path:
    """The local folder of a model or a head, after downloading it if it has to be."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(f"source={str(source)!r} is a file: give the folder that holds it")
    if isinstance(source, Path) or not HUB_NAME.fullmatch(source):
        raise FileNotFoundError(f"source={str(source)!r}: no such folder")
    return _download(source)


def find_file(source: str | Path, name: str) -> Path:
    """A file of a model or a head, of which nothing else is downloaded."""
    there = isinstance(source, Path) or Path(source).expanduser().exists()
    if there or not HUB_NAME.fullmatch(source):
        return find(source) / name
    import huggingface_hub

    return Path(_given(source, lambda: huggingface_hub.hf_hub_download(source, name)))


def _download(name: str) -> Path:
    import huggingface_hub

    folder = _given(
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


def _given(name: str, fetch: Callable[[], str]) -> str:
    """What the hub gives."""
    try:
        return fetch()
    # The client raises its own, its transport's and the system's errors, by release.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"source={name!r} is no local folder, and the hub did not give it: a local folder "
            f"works without the hub ({type(error).__name__}: {reason})"
        ) from error

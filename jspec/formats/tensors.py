"""Tensors in safetensors files: listed from their headers, read one at a time."""

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jspec.formats.folder import read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# Matrices are compared so many rows at a time.
COMPARED = 1024


@dataclass(frozen=True)
class Stored:
    """A tensor that has not been read: its file, and what the header says of it (`BF16`)."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str

    def read(self, piece: tuple[slice, ...] = ()) -> np.ndarray:
        """A piece of the tensor, or all of it, in the file's own dtype."""
        with safe_open(self.file, framework="numpy") as tensors:
            return tensors.get_slice(self.key)[piece] if piece else tensors.get_tensor(self.key)


def list_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a model folder, by its key. Reads headers only."""
    found: dict[str, Stored] = {}
    for file in _files(folder):
        for tensor in listed(file):
            if tensor.key in found:
                other = found[tensor.key].file.name
                raise ValueError(f"{file}: {tensor.key} is in {other} too; keep one of them")
            found[tensor.key] = tensor
    return found


def listed(file: Path) -> list[Stored]:
    """Every tensor of one file."""
    try:
        with safe_open(file, framework="numpy") as tensors:
            pieces = [(key, tensors.get_slice(key)) for key in tensors.keys()]
            return [
                Stored(file, key, tuple(piece.get_shape()), piece.get_dtype())
                for key, piece in pieces
            ]
    except SafetensorError as error:
        raise ValueError(
            f"{file} is truncated or no safetensors file ({error}): download or save it again"
        ) from None


def same(one: Stored, other: Stored) -> bool:
    """Whether two matrices are equal; they need not fit into memory."""
    if one.shape != other.shape:
        return False
    return all(np.array_equal(one.read((rows,)), other.read((rows,))) for rows in pieces(one))


def pieces(matrix: Stored) -> Iterator[slice]:
    """Its rows, some at a time."""
    count = matrix.shape[0]
    return (slice(row, min(row + COMPARED, count)) for row in range(0, count, COMPARED))


def write_tensors(folder: Path, tensors: Mapping[str, np.ndarray], name: str = SINGLE) -> None:
    """Writes all tensors into one file."""
    file = folder / name
    file.touch()
    mode = file.stat().st_mode
    # Readers that serve several frameworks look for this entry; "pt" names the layout of keys.
    try:
        save_file(dict(tensors), file, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{file} was not written: {error}") from None
    # Safetensors leaves a file that none but its owner may read.
    file.chmod(mode)


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


def _files(folder: Path) -> list[Path]:
    """The files that hold the weights: one, or those that the index names."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(_absent(folder))
    shards = read_json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ValueError(f"{folder / INDEX} has no weight_map: it must give each tensor's file")
    names = sorted({str(name) for name in shards.values()})
    for name in names:
        # An index comes from outside; it must not make us open what lies elsewhere.
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{folder / INDEX} names {name!r}: shards are *.safetensors beside it")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder / INDEX} names {', '.join(missing)}, not found beside it: fetch all shards"
        )
    return [folder / name for name in names]


def _absent(folder: Path) -> str:
    """Why a folder without weights that we read is refused."""
    pickles = sorted({file.name for pattern in PICKLES for file in folder.glob(pattern)})
    if pickles:
        one = f", or run: {conversion(folder)}" if pickles == [PICKLE] else ""
        return (
            f"{folder} holds its weights in {', '.join(pickles)}: pickles run code and are never "
            "opened; take a revision that has safetensors, or convert them (a model in "
            f"transformers: from_pretrained, then save_pretrained){one}"
        )
    others = sorted(file.name for file in folder.glob("*.safetensors"))
    return f"{folder} has no {SINGLE} and no {INDEX}" + (
        f" (it has {', '.join(others)}): rename a single file, or write the index of several"
        if others
        else ": a model folder holds config.json and one of the two"
    )

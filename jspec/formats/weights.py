"""Weights: tensors in safetensors files, and parameters that are read from them onto devices."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jspec.formats.folder import PICKLE, SINGLE, conversion, name_first, read_json
from jspec.models.protocol import LinenPart, Params
from jspec.parallel.memory import check_memory
from jspec.parallel.sharding import Rules, check, shardings

INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# What safetensors headers call the dtypes that weights may have; the rest are quantised.
STORED_FLOATS = ("F64", "F32", "BF16", "F16")
FLOATS = ("float32", "bfloat16", "float16")
# So many tensors that do not fit are named in an error; of the rest it has the number.
NAMED_COMPLAINTS = 12
# Matrices are compared so many rows at a time.
CHUNK_ROWS = 1024

# A parameter's key in a file, from its path in our tree.
KeyOf = Callable[[tuple[str, ...]], str]
# What is wrong with a tensor that is no parameter, in words; None if it does not belong there.
CheckExtra = Callable[[str, "Stored"], str | None]


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
        for tensor in file_tensors(file):
            if tensor.key in found:
                other = found[tensor.key].file.name
                raise ValueError(f"{file}: {tensor.key} is in {other} too; keep one of them")
            found[tensor.key] = tensor
    return found


def file_tensors(file: Path) -> list[Stored]:
    """Every tensor of one file. Reads the header only."""
    try:
        with safe_open(file, framework="numpy") as tensors:
            slices = [(key, tensors.get_slice(key)) for key in tensors.keys()]
            return [Stored(file, key, tuple(x.get_shape()), x.get_dtype()) for key, x in slices]
    except SafetensorError as error:
        raise ValueError(
            f"{file} is truncated or no safetensors file ({error}): download or save it again"
        ) from None


def file_about(file: Path) -> dict[str, str]:
    """The words about its tensors that a file holds."""
    try:
        with safe_open(file, framework="numpy") as tensors:
            return tensors.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{file} is truncated or no safetensors file ({error}): download or save it again"
        ) from None


def equal_tensors(one: Stored, other: Stored) -> bool:
    """Whether two matrices are equal; they need not fit into memory."""
    if one.shape != other.shape:
        return False
    return all(np.array_equal(one.read((rows,)), other.read((rows,))) for rows in row_chunks(one))


def row_chunks(matrix: Stored) -> Iterator[slice]:
    """Its rows, some at a time."""
    count = matrix.shape[0]
    return (slice(row, min(row + CHUNK_ROWS, count)) for row in range(0, count, CHUNK_ROWS))


def write_tensors(
    folder: Path,
    tensors: Mapping[str, np.ndarray],
    name: str = SINGLE,
    *,
    about: Mapping[str, str] | None = None,
) -> None:
    """Writes all tensors into one file, and beside them words about them."""
    file = folder / name
    file.touch()
    mode = file.stat().st_mode
    # Readers that serve several frameworks look for this entry; "pt" names the layout of keys.
    try:
        save_file(dict(tensors), file, metadata={"format": "pt", **(about or {})})
    except SafetensorError as error:
        raise OSError(f"{file} was not written: {error}") from None
    # Safetensors makes a file that only its owner may read.
    file.chmod(mode)


def read_params(
    folder: Path,
    stored: Mapping[str, Stored],
    part: LinenPart,
    key_of: KeyOf,
    check_extra: CheckExtra,
    *,
    dtype: np.dtype,
    mesh: Mesh | None,
    rules: Rules,
) -> Params:
    """The parameters in a folder's files, sharded by `rules` where there is a mesh.

    Raises `ValueError` that names what does not fit and counts the rest, before anything is read.
    """
    shapes = _flat(jax.eval_shape(part.init, jax.random.key(0)))
    wanted = {key_of(path): shape.shape for path, shape in shapes.items()}
    complaints = _complaints(wanted, stored, check_extra)
    if complaints:
        named = name_first(complaints, NAMED_COMPLAINTS)
        raise ValueError(
            f"{folder}: weights do not fit config.json: {named}: "
            "one of the two is of something else, so take both from one place"
        )
    places: dict[tuple[str, ...], NamedSharding | None] = dict.fromkeys(shapes)
    if mesh is not None:
        check(mesh, part.config, rules)
        places = _flat(shardings(mesh, part.axes(), rules))
    check_memory(f"the weights of {folder}", [(shapes[p].shape, dtype, places[p]) for p in shapes])
    return unflatten_dict(
        {path: _read(stored[key_of(path)], dtype, places[path]) for path in shapes}
    )


def flat_params(part: LinenPart, params: Params) -> dict[tuple[str, ...], Any]:
    """Parameters by their paths; raises `ValueError` if they are not the part's."""
    shapes = _flat(jax.eval_shape(part.init, jax.random.key(0)))
    given = _flat(params)
    wrong = sorted(
        {".".join(path) for path in shapes.keys() ^ given.keys()}
        | {".".join(p) for p in shapes.keys() & given if shapes[p].shape != given[p].shape}
    )
    if wrong:
        raise ValueError(f"params do not fit the model at {', '.join(wrong)}: give model.init's")
    return given


def to_stored(weight: Any, dtype: np.dtype, name: str) -> np.ndarray:
    """All of an array, of which other processes may hold parts, as a file holds it; raises
    `ValueError` for numbers that are beyond the range of the dtype."""
    return _converted(gather(weight), dtype, name)


def gather(weight: Any) -> np.ndarray:
    """All of an array, of which other processes may hold parts."""
    if isinstance(weight, jax.Array) and not weight.is_fully_addressable:
        weight = multihost_utils.process_allgather(weight, tiled=True)
    return np.asarray(weight)


def float_dtype(dtype: Any) -> np.dtype:
    """A dtype of weights; raises `ValueError` for any other.

    >>> float_dtype("bfloat16")
    dtype(bfloat16)
    """
    try:
        known = jnp.dtype(dtype)
    except TypeError:
        known = None
    if known is None or known.name not in FLOATS:
        raise ValueError(f"dtype={dtype!r} is no dtype of weights: {', '.join(FLOATS)} are")
    return known


def _flat(tree: Any) -> dict[tuple[str, ...], Any]:
    """The leaves of nested dicts by their paths."""
    leaves: Any = flatten_dict(tree)
    return leaves


def _read(tensor: Stored, dtype: np.dtype, place: NamedSharding | None) -> jax.Array:
    def read(piece: Any) -> np.ndarray:
        return _converted(tensor.read(piece), dtype, f"{tensor.key} of {tensor.file}")

    if place is None:
        return jnp.asarray(read(()))
    return jax.make_array_from_callback(tensor.shape, place, read)


def _converted(stored: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """A piece of a tensor in `dtype`; raises `ValueError` for numbers that are beyond float16."""
    with np.errstate(over="ignore"):
        converted = stored.astype(dtype, "C", copy=False)
    if dtype == np.float16 and stored.dtype != dtype:
        over = np.abs(stored[np.isinf(converted)].astype(np.float64))
        if largest := over[np.isfinite(over)].max(initial=0):
            raise ValueError(
                f"dtype='float16': {name} holds {largest:g}, and float16 ends at "
                f"{np.finfo(dtype).max:g}: take bfloat16 or float32"
            )
    return converted


def _complaints(
    wanted: Mapping[str, tuple[int, ...]], stored: Mapping[str, Stored], check_extra: CheckExtra
) -> list[str]:
    """Everything that is wrong with a folder's tensors, each in a few words."""
    found = [f"missing {name} {list(wanted[name])}" for name in sorted(wanted.keys() - stored)]
    for name, tensor in sorted(stored.items()):
        if name in wanted:
            if tensor.shape != wanted[name]:
                found.append(f"{name} should be {list(wanted[name])}, is {list(tensor.shape)}")
            if tensor.dtype not in STORED_FLOATS:
                found.append(f"{name} is {tensor.dtype}, of {', '.join(STORED_FLOATS)}")
        elif name.endswith("rotary_emb.inv_freq"):
            continue  # old transformers saved this table, which the configuration determines
        else:
            wrong = check_extra(name, tensor)
            found += [f"unexpected {name} {list(tensor.shape)}"] if wrong is None else []
            found += [wrong] if wrong else []
    return found


def _files(folder: Path) -> list[Path]:
    """The files that hold the weights: one, or those that the index names."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(_why_missing(folder))
    shards = read_json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ValueError(f"{folder / INDEX} has no weight_map: it must give each tensor's file")
    names = sorted({str(name) for name in shards.values()})
    for name in names:
        # An index comes from outside; it must not make us open files elsewhere.
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{folder / INDEX} names {name!r}: shards are *.safetensors beside it")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder / INDEX} names {', '.join(missing)}, not found beside it: fetch all shards"
        )
    return [folder / name for name in names]


def _why_missing(folder: Path) -> str:
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

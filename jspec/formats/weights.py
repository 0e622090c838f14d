"""Between a folder's tensors and parameters, each of which lives where it is to live."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from jspec.formats.tensors import Stored
from jspec.models.protocol import LinenPart, Params
from jspec.parallel.memory import demand
from jspec.parallel.sharding import Rules, check, shardings

# What safetensors headers call the dtypes that weights may have; the rest are quantised.
STORED_FLOATS = ("F64", "F32", "BF16", "F16")
FLOATS = ("float32", "bfloat16", "float16")

# A parameter's key in a file, from its path in our tree.
Names = Callable[[tuple[str, ...]], str]
# What is wrong with a tensor that is no parameter, in words; None if it does not belong there.
Spare = Callable[[str, Stored], str | None]


def read_params(
    folder: Path,
    stored: Mapping[str, Stored],
    part: LinenPart,
    names: Names,
    spare: Spare,
    *,
    dtype: np.dtype,
    mesh: Mesh | None,
    rules: Rules,
) -> Params:
    """The parameters of a folder's files, cut as `rules` say where there is a mesh.

    Raises `ValueError` that lists all that does not fit, before anything is read.
    """
    shapes = flatten_dict(jax.eval_shape(part.init, jax.random.key(0)))
    wanted = {names(path): shape.shape for path, shape in shapes.items()}
    complaints = _compare(wanted, stored, spare)
    if complaints:
        raise ValueError(
            f"{folder}: weights do not fit config.json: {'; '.join(complaints)}: one of the two is "
            "of something else, so take both from one place"
        )
    homes: dict[tuple[str, ...], NamedSharding | None] = dict.fromkeys(shapes)
    if mesh is not None:
        check(mesh, part.config, rules)
        homes = flatten_dict(shardings(mesh, part.axes(), rules))
    demand(f"the weights of {folder}", [(shapes[p].shape, dtype, homes[p]) for p in shapes])
    return unflatten_dict(
        {path: _place(stored[names(path)], dtype, homes[path]) for path in shapes}
    )


def flat_params(part: LinenPart, params: Params) -> dict[tuple[str, ...], Any]:
    """Parameters by their paths; raises `ValueError` if they are not the part's."""
    shapes = flatten_dict(jax.eval_shape(part.init, jax.random.key(0)))
    given = flatten_dict(params)
    wrong = sorted(
        {".".join(path) for path in shapes.keys() ^ given.keys()}
        | {".".join(p) for p in shapes.keys() & given if shapes[p].shape != given[p].shape}
    )
    if wrong:
        raise ValueError(f"params do not fit the model at {', '.join(wrong)}: give model.init's")
    return given


def stored_array(weight: Any, dtype: np.dtype) -> np.ndarray:
    """All of an array, of which other processes may hold parts, as a file holds it."""
    return whole(weight).astype(dtype, "C", copy=False)


def whole(weight: Any) -> np.ndarray:
    """All of an array, of which other processes may hold parts."""
    if isinstance(weight, jax.Array) and not weight.is_fully_addressable:
        weight = multihost_utils.process_allgather(weight, tiled=True)
    return np.asarray(weight)


def float_dtype(dtype: Any) -> np.dtype:
    """A dtype of weights; raises `ValueError` for any other."""
    try:
        known = jnp.dtype(dtype)
    except TypeError:
        known = None
    if known is None or known.name not in FLOATS:
        raise ValueError(f"dtype={dtype!r} is no dtype of weights: {', '.join(FLOATS)} are")
    return known


def _place(tensor: Stored, dtype: np.dtype, home: NamedSharding | None) -> jax.Array:
    def read(piece: tuple[slice, ...]) -> np.ndarray:
        return tensor.read(piece).astype(dtype, copy=False)

    if home is None:
        return jnp.asarray(read(()))
    return jax.make_array_from_callback(tensor.shape, home, read)


def _compare(
    wanted: Mapping[str, tuple[int, ...]], stored: Mapping[str, Stored], spare: Spare
) -> list[str]:
    """All that is wrong with a folder's tensors, each in a few words."""
    complaints = [f"missing {name} {list(wanted[name])}" for name in sorted(wanted.keys() - stored)]
    for name, tensor in sorted(stored.items()):
        if name in wanted:
            if tensor.shape != wanted[name]:
                complaints.append(f"{name} should be {list(wanted[name])}, is {list(tensor.shape)}")
            if tensor.dtype not in STORED_FLOATS:
                complaints.append(f"{name} is {tensor.dtype}, of {', '.join(STORED_FLOATS)}")
        elif name.endswith("rotary_emb.inv_freq"):
            continue  # old transformers saved this table, which the configuration determines
        else:
            wrong = spare(name, tensor)
            complaints += [f"unexpected {name} {list(tensor.shape)}"] if wrong is None else []
            complaints += [wrong] if wrong else []
    return complaints

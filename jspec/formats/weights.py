"""From a folder's tensors to a model's parameters, each where it is to live."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding

from jspec.formats.families import FAMILIES, key
from jspec.formats.tensors import Stored, list_tensors
from jspec.memory import demand
from jspec.models.protocol import LinenModel, Params
from jspec.sharding import Rules, check, shardings

# What safetensors headers call the dtypes that weights may have; the rest are quantised.
STORED_FLOATS = ("F64", "F32", "BF16", "F16")
# Tied matrices are compared so many rows at a time.
COMPARED = 1024


def read_params(
    folder: Path,
    model: LinenModel,
    family: str,
    dtype: np.dtype,
    mesh: Mesh | None,
    rules: Rules,
) -> Params:
    """The parameters of a folder's files, cut as `rules` say where there is a mesh.

    Raises `ValueError` that lists all that does not fit, before anything is read.
    """
    shapes = flatten_dict(jax.eval_shape(model.init, jax.random.key(0)))
    wanted = {key(family, path): shape.shape for path, shape in shapes.items()}
    stored = list_tensors(folder)
    complaints = _compare(wanted, stored, FAMILIES[family].KEYS)
    if complaints:
        raise ValueError(f"{folder}: weights do not fit config.json: {'; '.join(complaints)}")
    homes: dict[tuple[str, ...], NamedSharding | None] = dict.fromkeys(shapes)
    if mesh is not None:
        check(mesh, model.config, rules)
        homes = flatten_dict(shardings(mesh, model.axes(), rules))
    demand(f"the weights of {folder}", [(shapes[p].shape, dtype, homes[p]) for p in shapes])
    return unflatten_dict(
        {path: _place(stored[key(family, path)], dtype, homes[path]) for path in shapes}
    )


def _place(tensor: Stored, dtype: np.dtype, home: NamedSharding | None) -> jax.Array:
    def read(piece: tuple[slice, ...]) -> np.ndarray:
        return tensor.read(piece).astype(dtype, copy=False)

    if home is None:
        return jnp.asarray(read(()))
    return jax.make_array_from_callback(tensor.shape, home, read)


def _compare(
    wanted: dict[str, tuple[int, ...]], stored: dict[str, Stored], keys: dict[str, str]
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
        elif name == keys["head.weight"]:  # not wanted, so it is tied
            embedding = stored.get(keys["embedding"])
            if embedding is None or not _same(embedding, tensor):
                complaints.append(f"{name} differs from the embedding it is tied to")
        else:
            complaints.append(f"unexpected {name} {list(tensor.shape)}")
    return complaints


def _same(one: Stored, other: Stored) -> bool:
    """Whether two matrices are equal; they need not fit into memory."""
    if one.shape != other.shape:
        return False
    rows = one.shape[0]
    pieces = [(slice(row, min(row + COMPARED, rows)),) for row in range(0, rows, COMPARED)]
    return all(np.array_equal(one.read(piece), other.read(piece)) for piece in pieces)

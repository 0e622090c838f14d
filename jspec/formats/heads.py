"""Heads that read features, in the layouts in which they are exchanged, checked to the last key."""

import functools
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jspec.formats import eagle, layouts
from jspec.formats.folder import read_json, replacing, write_json
from jspec.formats.hub import find
from jspec.formats.tensors import Stored, list_tensors, pieces, write_tensors
from jspec.formats.weights import (
    flat_params,
    float_dtype,
    read_params,
    stored_array,
    whole,
)
from jspec.models.heads import Head
from jspec.models.protocol import EmbeddingModel, Params
from jspec.sharding import RULES, Rules

# Of `layouts.HEADS` those that are read and written. Each has EMBEDDING, key, read_head and
# write_head.
DIALECTS: dict[str, ModuleType] = {"eagle": eagle}
# What safetensors headers call the dtypes that weights may have, the finest first.
GRAINS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
HALVES = {np.dtype(np.float16), np.dtype(jnp.bfloat16)}


@dataclass(frozen=True, eq=False)
class HeadCheckpoint:
    """A head that was read.

    Attributes:
      folder: where it was found; format: its layout there, one of `DIALECTS`.
    """

    head: Head
    params: Params
    folder: Path
    format: str


def load_head(
    source: str | Path,
    target: EmbeddingModel,
    params: Params,
    *,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
) -> HeadCheckpoint:
    """Reads a head, one tensor at a time, for the target that it was made for.

    Raises `ValueError` where the head's width, vocabulary or embedding is not the target's, and for
    every key and shape that does not fit.

    Args:
      source: a local folder, or a name on the Hugging Face hub.
      target: whose features, embedding and head it uses; params: the target's.
      dtype, mesh, rules: as `load` has them.
    """
    dtype = float_dtype(dtype)
    folder = find(source)
    config, stored, layout = _open(folder)
    dialect = dialect_of(layout, f"{folder} holds a head, whose ")
    try:
        head = dialect.read_head(config, stored)
        _fit(head, target, params)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from None
    own = read_params(
        folder,
        stored,
        head,
        functools.partial(dialect.key, head),
        functools.partial(_foreign, dialect.EMBEDDING, target, params),
        dtype=dtype,
        mesh=mesh,
        rules=rules,
    )
    return HeadCheckpoint(head, own, folder, layout)


def save_head(
    folder: str | Path,
    head: Head,
    params: Params,
    *,
    embedding: Any = None,
    dtype: Any = None,
    format: str = "eagle",
) -> None:
    """Writes a head that `load_head` and the layout's other readers read. All of it, or nothing.

    In a launch of several processes all of them call it, and the first writes.

    Args:
      folder: where to; a head that is there is replaced, other files beside it stay.
      params: as `head.init` gives them.
      embedding: `[V, D]` the target's, which other readers expect in the file; ours do not.
      dtype: of the file; when None, that of the parameters.
      format: the layout to write, one of `DIALECTS`.
    """
    dialect = dialect_of(format)
    weights = flat_params(head, params)
    config = dialect.write_head(head)
    dtype = float_dtype(jax.tree.leaves(params)[0].dtype if dtype is None else dtype)
    tensors = {dialect.key(head, path): stored_array(x, dtype) for path, x in weights.items()}
    if embedding is not None:
        shape = (head.config.vocabulary, head.config.width)
        if embedding.shape != shape:
            raise ValueError(f"embedding is {embedding.shape}: the head's target has {shape}")
        tensors[dialect.EMBEDDING] = stored_array(embedding, dtype)
    if jax.process_index() == 0:
        with replacing(Path(folder)) as partial:
            write_json(partial / "config.json", config | _spell(dtype))
            write_tensors(partial, tensors)
    multihost_utils.sync_global_devices("the head is written")


def head_layout(source: str | Path) -> str | None:
    """The layout of a folder that holds a head, whether it is read or not; None for others."""
    folder = find(source)
    if not (folder / "config.json").is_file():
        return None
    return layouts.layout_of(read_json(folder / "config.json"), list_tensors(folder))


def dialect_of(format: str, what: str = "") -> ModuleType:
    """What reads and writes a layout, one of `DIALECTS`; raises `ValueError` if nothing does.

    Args:
      what: to say before the name of a layout that is refused.
    """
    if format in DIALECTS:
        return DIALECTS[format]
    why = "not read or written yet" if format in layouts.HEADS else "not known"
    raise ValueError(f"{what}format={format!r} is {why}: {', '.join(DIALECTS)} is")


def _open(folder: Path) -> tuple[dict[str, Any], dict[str, Stored], str]:
    """A head's configuration, its tensors and its layout."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} has no config.json: a head's folder holds it and weights"
        )
    config, stored = read_json(folder / "config.json"), list_tensors(folder)
    layout = layouts.layout_of(config, stored)
    if layout is None:
        raise ValueError(
            f"{folder} holds no head, which has keys such as fc.weight: a whole model is read by "
            "load, and --draft takes it as it is"
        )
    return config, stored, layout


def _fit(head: Head, target: EmbeddingModel, params: Params) -> None:
    """Raises `ValueError` for a head that is not of the target's sizes."""
    one = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    sizes = {
        "hidden_size": (head.config.width, jax.eval_shape(target.embed, params, one).shape[-1]),
        "vocab_size": (head.config.vocabulary, target.config.vocabulary),
    }
    for field, (own, wanted) in sizes.items():
        if own != wanted:
            raise ValueError(
                f"{field}={own}, and the target's is {wanted}: take the target that the head was "
                "made for, or a head that was made for this one"
            )


def _foreign(
    embedding: str, target: EmbeddingModel, params: Params, name: str, tensor: Stored
) -> str | None:
    """What is wrong with a copy of the target's embedding."""
    if name != embedding:
        return None
    width = jax.eval_shape(target.embed, params, jax.ShapeDtypeStruct((1, 1), jnp.int32)).shape[-1]
    shape = (target.config.vocabulary, width)
    if tensor.shape != shape:
        return f"{name} should be {list(shape)}, is {list(tensor.shape)}"
    if tensor.dtype not in GRAINS:
        return f"{name} is {tensor.dtype}, of {', '.join(GRAINS)}"
    for rows in pieces(tensor):
        tokens = jnp.arange(rows.start, rows.stop)[None]
        if not _agree(tensor.read((rows,)), whole(target.embed(params, tokens))[0]):
            return f"{name} is not the target's embedding, so the head was made for another target"
    return ""


def _agree(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays are equal, once both are rounded to both dtypes, the coarser last."""
    grains = [g for g in map(np.dtype, GRAINS.values()) if g in (one.dtype, other.dtype)]
    with np.errstate(over="ignore"):
        for grain in grains:
            one, other = one.astype(grain), other.astype(grain)
    # Of the two halves neither holds the other: what was float32 is rounded twice on one side
    # alone, and may end a unit of bfloat16 apart, or of float16 where that has no more digits.
    unit, least = jnp.finfo(jnp.bfloat16).eps, jnp.finfo(jnp.float16).smallest_subnormal
    slack = (float(unit), float(least)) if HALVES <= set(grains) else (0.0, 0.0)
    return np.allclose(one.astype(np.float32), other.astype(np.float32), *slack)


def _spell(dtype: np.dtype) -> dict[str, Any]:
    """Fields that every `config.json` has; absent ones would be filled with a family's own."""
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    return {**tokens, "torch_dtype": dtype.name, "dtype": dtype.name}

"""The target's embedding, of which the files of heads often hold a copy."""

import jax
import jax.numpy as jnp
import numpy as np

from jspec.formats.tensors import Stored, pieces
from jspec.formats.weights import whole
from jspec.models.protocol import EmbeddingModel, Params

# What safetensors headers call the dtypes that weights may have, the finest first.
GRAINS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
HALVES = {np.dtype(np.float16), np.dtype(jnp.bfloat16)}


def embedding_shape(target: EmbeddingModel, params: Params) -> tuple[int, int]:
    """`[V, D]` of the target's."""
    one = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return target.config.vocabulary, jax.eval_shape(target.embed, params, one).shape[-1]


def unlike(name: str, tensor: Stored, target: EmbeddingModel, params: Params) -> str:
    """How a copy differs from the target's embedding, in words; empty if it does not."""
    shape = embedding_shape(target, params)
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

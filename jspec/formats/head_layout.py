"""What a layout of heads is, and what layouts share: the target's embedding, `d2t` and `t2d`."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jspec.config import ModelConfig
from jspec.formats.fields import Fields
from jspec.formats.weights import Stored, gather, row_chunks
from jspec.models.eagle3 import Eagle3, check_d2t
from jspec.models.heads import Head
from jspec.models.protocol import EmbeddingModel, Params

EMBEDDING = "embed_tokens.weight"
D2T, T2D = "d2t", "t2d"
SPECULATIVE_TOKENS = 3
INTEGERS = ("I64", "I32")
# What safetensors headers call the dtypes that weights may have, the finest first.
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
HALVES = {np.dtype(np.float16), np.dtype(jnp.bfloat16)}


class Serving(NamedTuple):
    """How vLLM serves a head, which the layout of speculators holds.

    Attributes:
      verifier: the target's folder or hub name.
      architectures: of the target, as its `config.json` lists them.
      speculative_tokens: how many tokens the head drafts in a round.

    >>> Serving("Qwen/Qwen3-8B", ("Qwen3ForCausalLM",), speculative_tokens=5).verifier
    'Qwen/Qwen3-8B'
    """

    verifier: str
    architectures: tuple[str, ...]
    speculative_tokens: int = SPECULATIVE_TOKENS


@dataclass(frozen=True, eq=False)
class HeadLayout:
    """A layout in which heads are exchanged.

    Attributes:
      name: as `format=` and `--format` take it.
      heads: which heads it holds, in words.
      module: the Linen module of those heads.
      keys: from the names of a head's parameters to those of a file that has these names; without
        names, of a file to write.
      check_extra: what is wrong with a tensor that is no parameter, in words; empty if nothing is,
        None if it does not belong there.
      read_head: the head that a folder holds for a target and its parameters; raises `ValueError`
        that names the field or the key.
      write_head: the `config.json` of a head, from the fields that every configuration has and how
        it is served; raises `ValueError` for a head that the layout does not hold.
      needs_embedding: whether a file must have the target's embedding.
      always_d2t: whether a file has `d2t` and `t2d` even if the head has all tokens.
    """

    name: str
    heads: str
    module: type[nn.Module]
    keys: Callable[[Head, Iterable[str]], dict[str, str]]
    check_extra: Callable[[Head, EmbeddingModel, Params, str, Stored], str | None]
    read_head: Callable[[Fields, Mapping[str, Stored], EmbeddingModel, Params], Head]
    write_head: Callable[[Any, Mapping[str, Any], Serving | None], dict[str, Any]]
    needs_embedding: bool = False
    always_d2t: bool = False


def check_written(
    config: ModelConfig,
    layout: str,
    read: Callable[[Fields], ModelConfig],
    written: Mapping[str, Any],
) -> None:
    """Raises `ValueError` with the fields of a head's `config` that are lost in what is written."""
    try:
        again = read(written)
    except ValueError as error:
        raise ValueError(f"head: {error}") from None
    lost = [name for name, value in vars(config).items() if getattr(again, name) != value]
    if lost:
        fields = ", ".join(f"{name}={getattr(config, name)!r}" for name in lost)
        raise ValueError(
            f"head has {fields}, which the layout of {layout} does not have: change it"
        )


def embedding_shape(target: EmbeddingModel, params: Params) -> tuple[int, int]:
    """`[V, D]` of the target's embedding."""
    one = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return target.config.vocab_size, jax.eval_shape(target.embed, params, one).shape[-1]


def embedding_difference(name: str, tensor: Stored, target: EmbeddingModel, params: Params) -> str:
    """How a tensor differs from the target's embedding, in words; empty if it does not."""
    shape = embedding_shape(target, params)
    if tensor.shape != shape:
        return f"{name} should be {list(shape)}, is {list(tensor.shape)}"
    if tensor.dtype not in DTYPES:
        return f"{name} is {tensor.dtype}, of {', '.join(DTYPES)}"
    for rows in row_chunks(tensor):
        tokens = jnp.arange(rows.start, rows.stop)[None]
        if not _equal_when_rounded(tensor.read((rows,)), gather(target.embed(params, tokens))[0]):
            return f"{name} is not the target's embedding, so the head was made for another target"
    return ""


def _equal_when_rounded(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays are equal once both are rounded to both dtypes, the coarser last."""
    dtypes = [d for d in map(np.dtype, DTYPES.values()) if d in (one.dtype, other.dtype)]
    with np.errstate(over="ignore"):
        for dtype in dtypes:
            one, other = one.astype(dtype), other.astype(dtype)
    # Neither of the two halves contains the other: what was float32 is rounded twice on one side
    # only, and may end a unit of bfloat16 apart, or of float16 where that has no more digits.
    unit, least = jnp.finfo(jnp.bfloat16).eps, jnp.finfo(jnp.float16).smallest_subnormal
    slack = (float(unit), float(least)) if HALVES <= set(dtypes) else (0.0, 0.0)
    return np.allclose(one.astype(np.float32), other.astype(np.float32), *slack)


def check_d2t_tensor(head: Head, name: str, tensor: Stored) -> str | None:
    """`HeadLayout.check_extra` for `d2t` and `t2d`."""
    if name not in (D2T, T2D) or not isinstance(head, Eagle3):
        return None
    size = head.draft_vocab_size if name == D2T else head.config.vocab_size
    dtypes = INTEGERS if name == D2T else ("BOOL",)
    if tensor.shape != (size,):
        return f"{name} should be {[size]}, is {list(tensor.shape)}"
    return "" if tensor.dtype in dtypes else f"{name} is {tensor.dtype}, of {', '.join(dtypes)}"


def read_d2t(head: Head, stored: Mapping[str, Stored]) -> np.ndarray | None:
    """The offsets `d2t`; None for a head that has all of the target's tokens.

    Raises `ValueError` where they are missing or wrong, or where `t2d`, which is optional, marks
    other tokens.
    """
    count, vocab_size = head.draft_vocab_size, head.config.vocab_size
    sizes = f"draft_vocab_size={count} of vocab_size={vocab_size}"
    if _has_fewer(head) and D2T not in stored:
        raise ValueError(f"{sizes}, and {D2T} is missing, which says which tokens they are")
    d2t = stored[D2T].read() if D2T in stored else np.zeros(count, np.int64)
    check_d2t(d2t, vocab_size)
    if not _has_fewer(head) and d2t.any():
        token = int(np.flatnonzero(d2t)[0])
        raise ValueError(
            f"{sizes}, and {D2T} makes token {token + d2t[token]} of draft token {token}: a head "
            "that has all tokens has each where the target has it"
        )
    if T2D in stored:
        _check_t2d(head, d2t, stored[T2D].read())
    return d2t if _has_fewer(head) else None


def write_d2t(head: Head, d2t: Array | None, *, always: bool = False) -> dict[str, np.ndarray]:
    """Both tensors; for a head that has all of the target's tokens none, unless `always`.

    Raises `ValueError` where `d2t` is not the head's.
    """
    given = head.config.vocab_size if d2t is None else len(d2t)
    if given != head.draft_vocab_size or (d2t is not None and not _has_fewer(head)):
        table = "no d2t" if d2t is None else f"a d2t of {given} tokens"
        raise ValueError(
            f"{table} for a head of {head.draft_vocab_size} of the target's "
            f"{head.config.vocab_size} tokens: give that of its tokens, and none where it has all"
        )
    if d2t is None and not always:
        return {}
    table = np.zeros(given, np.int64) if d2t is None else np.asarray(d2t, np.int64)
    check_d2t(table, head.config.vocab_size)
    return {D2T: table, T2D: _make_t2d(head, table)}


def place_d2t(d2t: np.ndarray | None, mesh: Mesh | None) -> Array | None:
    """`d2t` as `HeadParams` has it, on every device of the mesh."""
    if d2t is None:
        return None
    table = d2t.astype(np.int32)
    if mesh is None:
        return jnp.asarray(table)
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.make_array_from_callback(table.shape, everywhere, lambda piece: table[piece])


def _check_t2d(head: Head, d2t: np.ndarray, t2d: np.ndarray) -> None:
    """Raises `ValueError` where `t2d` marks other tokens than those that `d2t` makes."""
    wanted = _make_t2d(head, d2t)
    if np.array_equal(t2d, wanted):
        return
    if np.array_equal(np.flatnonzero(t2d), np.sort(d2t)):
        raise ValueError(
            f"{D2T} holds the tokens that {T2D} marks, where token - index belongs: subtract "
            f"0..{len(d2t) - 1} from it"
        )
    token = int(np.flatnonzero(t2d != wanted)[0])
    ours, theirs = ("has" if x[token] else "does not have" for x in (wanted, t2d))
    raise ValueError(
        f"token {token}: by {D2T} the head {ours} it, and by {T2D} it {theirs} it: one of them is "
        "another head's"
    )


def _has_fewer(head: Head) -> bool:
    return head.draft_vocab_size < head.config.vocab_size


def _make_t2d(head: Head, d2t: np.ndarray) -> np.ndarray:
    """`[V]` bool, which of the target's tokens the head has."""
    marks = np.zeros(head.config.vocab_size, bool)
    marks[np.arange(len(d2t)) + d2t] = True
    return marks

"""The table of a head's tokens among the target's, as files hold it: `d2t`, and `t2d` beside it."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jspec.formats.tensors import Stored
from jspec.models.eagle3 import check_vocabulary
from jspec.models.heads import Head

D2T, T2D = "d2t", "t2d"
WHOLE = ("I64", "I32")


def misplaced(head: Head, name: str, tensor: Stored) -> str | None:
    """What is wrong with one of the two tensors, in words; None if it does not belong there."""
    if name not in (D2T, T2D) or not _fewer(head):
        return None
    size = head.draft_vocabulary if name == D2T else head.config.vocabulary
    kinds = WHOLE if name == D2T else ("BOOL",)
    if tensor.shape != (size,):
        return f"{name} should be {[size]}, is {list(tensor.shape)}"
    return "" if tensor.dtype in kinds else f"{name} is {tensor.dtype}, of {', '.join(kinds)}"


def read_vocabulary(head: Head, stored: Mapping[str, Stored]) -> np.ndarray | None:
    """The offsets `d2t`; None for a head that has all of the target's tokens.

    Raises `ValueError` where they are missing or are no such table, or where `t2d`, which not all
    write, marks other tokens.
    """
    if not _fewer(head):
        return None
    there = f"draft_vocab_size={head.draft_vocabulary} of vocab_size={head.config.vocabulary}"
    if D2T not in stored:
        raise ValueError(f"{there}, and {D2T} is missing, which tells which tokens they are")
    d2t = stored[D2T].read()
    check_vocabulary(d2t, head.config.vocabulary)
    if T2D in stored:
        marked, wanted = stored[T2D].read(), _marks(head, d2t)
        if not np.array_equal(marked, wanted):
            token = int(np.flatnonzero(marked != wanted)[0])
            ours, theirs = ("has" if x[token] else "has not" for x in (wanted, marked))
            raise ValueError(
                f"token {token}: by {D2T} the head {ours} it, and by {T2D} it {theirs}: one of "
                "them is another head's"
            )
    return d2t


def write_vocabulary(head: Head, d2t: Array | None) -> dict[str, np.ndarray]:
    """Both tensors; none for a head that has all of the target's tokens.

    Raises `ValueError` where the table is not the head's.
    """
    given = head.config.vocabulary if d2t is None else len(d2t)
    if given != head.draft_vocabulary or (d2t is not None and not _fewer(head)):
        table = "no d2t" if d2t is None else f"a d2t of {given} tokens"
        raise ValueError(
            f"{table} for a head of {head.draft_vocabulary} of the target's "
            f"{head.config.vocabulary} tokens: give that of its tokens, and none where it has all"
        )
    if d2t is None:
        return {}
    table = np.asarray(d2t, np.int64)
    check_vocabulary(table, head.config.vocabulary)
    return {D2T: table, T2D: _marks(head, table)}


def laid(d2t: np.ndarray | None, mesh: Mesh | None) -> Array | None:
    """The table as `HeadParams` has it, on every device of the mesh."""
    if d2t is None:
        return None
    table = d2t.astype(np.int32)
    if mesh is None:
        return jnp.asarray(table)
    home = NamedSharding(mesh, PartitionSpec())
    return jax.make_array_from_callback(table.shape, home, lambda piece: table[piece])


def _fewer(head: Head) -> bool:
    return head.draft_vocabulary < head.config.vocabulary


def _marks(head: Head, d2t: np.ndarray) -> np.ndarray:
    """`[V]` bool, which of the target's tokens the head has."""
    marks = np.zeros(head.config.vocabulary, bool)
    marks[np.arange(len(d2t)) + d2t] = True
    return marks

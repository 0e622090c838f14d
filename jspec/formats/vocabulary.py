"""The table of a head's tokens among the target's, as files hold it: `d2t`, and `t2d` beside it."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jspec.formats.tensors import Stored
from jspec.models.eagle3 import Eagle3, check_vocabulary
from jspec.models.heads import Head

D2T, T2D = "d2t", "t2d"
WHOLE = ("I64", "I32")


def misplaced(head: Head, name: str, tensor: Stored) -> str | None:
    """What is wrong with one of the two tensors, in words; None if it does not belong there."""
    if name not in (D2T, T2D) or not isinstance(head, Eagle3):
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
    count, vocabulary = head.draft_vocabulary, head.config.vocabulary
    there = f"draft_vocab_size={count} of vocab_size={vocabulary}"
    if _fewer(head) and D2T not in stored:
        raise ValueError(f"{there}, and {D2T} is missing, which tells which tokens they are")
    d2t = stored[D2T].read() if D2T in stored else np.zeros(count, np.int64)
    check_vocabulary(d2t, vocabulary)
    if not _fewer(head) and d2t.any():
        token = int(np.flatnonzero(d2t)[0])
        raise ValueError(
            f"{there}, and {D2T} makes token {token + d2t[token]} of draft token {token}: a head "
            "that has all tokens has each where the target has it"
        )
    if T2D in stored:
        _check_marks(head, d2t, stored[T2D].read())
    return d2t if _fewer(head) else None


def write_vocabulary(
    head: Head, d2t: Array | None, *, always: bool = False
) -> dict[str, np.ndarray]:
    """Both tensors; of a head that has all of the target's tokens none, or `always` those too.

    Raises `ValueError` where the table is not the head's.
    """
    given = head.config.vocabulary if d2t is None else len(d2t)
    if given != head.draft_vocabulary or (d2t is not None and not _fewer(head)):
        table = "no d2t" if d2t is None else f"a d2t of {given} tokens"
        raise ValueError(
            f"{table} for a head of {head.draft_vocabulary} of the target's "
            f"{head.config.vocabulary} tokens: give that of its tokens, and none where it has all"
        )
    if d2t is None and not always:
        return {}
    table = np.zeros(given, np.int64) if d2t is None else np.asarray(d2t, np.int64)
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


def _check_marks(head: Head, d2t: np.ndarray, marked: np.ndarray) -> None:
    """Raises `ValueError` where `marked`, which is `t2d`, is not of the tokens that `d2t` makes."""
    wanted = _marks(head, d2t)
    if np.array_equal(marked, wanted):
        return
    if np.array_equal(np.flatnonzero(marked), np.sort(d2t)):
        raise ValueError(
            f"{D2T} holds the tokens that {T2D} marks, where token - index belongs: subtract "
            f"0..{len(d2t) - 1} from it"
        )
    token = int(np.flatnonzero(marked != wanted)[0])
    ours, theirs = ("has" if x[token] else "has not" for x in (wanted, marked))
    raise ValueError(
        f"token {token}: by {D2T} the head {ours} it, and by {T2D} it {theirs}: one of them is "
        "another head's"
    )


def _fewer(head: Head) -> bool:
    return head.draft_vocabulary < head.config.vocabulary


def _marks(head: Head, d2t: np.ndarray) -> np.ndarray:
    """`[V]` bool, which of the target's tokens the head has."""
    marks = np.zeros(head.config.vocabulary, bool)
    marks[np.arange(len(d2t)) + d2t] = True
    return marks

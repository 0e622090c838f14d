"""The draft vocabulary: which of the target's tokens a head drafts, kept in a file of its run."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

import jax
import numpy as np
from jax.sharding import Mesh
from safetensors.numpy import load_file

from jspec.formats.folder import writing
from jspec.formats.head_layout import D2T, place_d2t
from jspec.formats.heads import HeadCheckpoint
from jspec.formats.huggingface import Checkpoint
from jspec.formats.weights import write_tensors
from jspec.training.data import Document

TABLE = "vocabulary.safetensors"
# Texts that are counted at a time.
COUNTED = 1024


def most_frequent(
    texts: Sequence[Document], count: int, *, vocabulary: int, always: Sequence[int]
) -> np.ndarray:
    """The `count` most frequent of the target's tokens, as `HeadParams` has them: `d2t` `[count]`.

    Of tokens with the same frequency the lower comes first.

    Args:
      vocabulary: the target's; always: tokens that belong to it however rare they are.

    Raises `ValueError` where `count` is more than the target has, or less than `always`.
    """
    if not len(set(always)) <= count <= vocabulary:
        raise ValueError(
            f"head.draft_vocab_size={count}: the target has {vocabulary} tokens, of which "
            f"{len(set(always))} end a text and belong to it, so take a number between"
        )
    found = np.zeros(vocabulary, np.int64)
    for start in range(0, len(texts), COUNTED):
        some = range(start, min(start + COUNTED, len(texts)))
        tokens = np.concatenate([np.asarray(texts[index].tokens) for index in some])
        found += np.bincount(tokens, minlength=vocabulary)
    found[list(always)] = np.iinfo(np.int64).max
    chosen = np.sort(np.argsort(-found, kind="stable")[:count])
    return chosen - np.arange(count)


def read_table(run: Path, count: int) -> np.ndarray | None:
    """The table of `count` tokens in a run's folder; None if there is none.

    Raises `ValueError` where the table is of another size.
    """
    file = run / TABLE
    if not file.is_file():
        return None
    d2t = load_file(file)[D2T]
    if len(d2t) != count:
        raise ValueError(
            f"{file} has {len(d2t)} tokens, and head.draft_vocab_size={count}: take another name, "
            "or resume that run"
        )
    return d2t


def write_table(run: Path, d2t: Any) -> None:
    """Writes a table into a run's folder, whole or not at all; does nothing if `d2t` is None.

    Raises `ValueError` where the folder has another table.
    """
    if d2t is None:
        return
    table = np.asarray(d2t, np.int64)
    there = read_table(run, len(table))
    if there is not None and not np.array_equal(there, table):
        raise ValueError(f"{run / TABLE} has other tokens than the draft: take another name")
    if there is None and jax.process_index() == 0:
        with writing(run / TABLE) as partial:
            write_tensors(run, {D2T: table}, partial.name)


def lacks_vocabulary(draft: Checkpoint | HeadCheckpoint) -> TypeGuard[HeadCheckpoint]:
    """Whether it is a head with a smaller vocabulary whose tokens are not chosen yet."""
    if not isinstance(draft, HeadCheckpoint) or draft.d2t is not None:
        return False
    return draft.head.draft_vocab_size < draft.head.config.vocab_size


def with_vocabulary(
    draft: HeadCheckpoint,
    run: Path,
    *,
    started: bool,
    texts: Sequence[Document] = (),
    always: tuple[int, ...] = (),
    mesh: Mesh | None = None,
) -> HeadCheckpoint:
    """The head with the tokens in its run's folder or, before there are any, the most frequent.

    Args:
      started: whether the run has checkpoints, which only fit the tokens that they were trained
        for.
      texts: to count tokens in; always: tokens that belong to it however rare they are.
    """
    count = draft.head.draft_vocab_size
    d2t = read_table(run, count)
    if d2t is None and started:
        raise ValueError(
            f"{run} has no {TABLE}, so nothing says which {count} tokens its head has: put the "
            "file back, or take another name"
        )
    if d2t is None:
        vocabulary = draft.head.config.vocab_size
        d2t = most_frequent(texts, count, vocabulary=vocabulary, always=always)
    return replace(draft, d2t=place_d2t(d2t, mesh))

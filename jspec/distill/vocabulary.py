"""Which of the target's tokens a head is to guess, and the file that keeps them beside its run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from jspec.distill.data import Document
from jspec.formats.vocabulary import D2T

TABLE = "vocabulary.safetensors"
# Texts that are counted at a time.
COUNTED = 1024


def frequent(
    texts: Sequence[Document], count: int, *, vocabulary: int, always: Sequence[int]
) -> np.ndarray:
    """The `count` most frequent of the target's tokens, as `HeadParams` has them: `d2t` `[count]`.

    Of those that are as frequent the lower number comes first. Raises `ValueError` where there are
    not as many, or more that belong to it `always`.
    """
    if not len(set(always)) <= count <= vocabulary:
        raise ValueError(
            f"head.tokens={count}: the target has {vocabulary}, of which {len(set(always))} end a "
            "text and belong to it, so take a number between"
        )
    found = np.zeros(vocabulary, np.int64)
    for start in range(0, len(texts), COUNTED):
        some = range(start, min(start + COUNTED, len(texts)))
        tokens = np.concatenate([np.asarray(texts[index].tokens) for index in some])
        found += np.bincount(tokens, minlength=vocabulary)
    found[list(always)] = np.iinfo(np.int64).max
    chosen = np.sort(np.argsort(-found, kind="stable")[:count])
    return chosen - np.arange(count)


def kept(run: Path, count: int) -> np.ndarray | None:
    """The table of `count` tokens that a run's folder keeps; None if it has none.

    Raises `ValueError` where it is of others.
    """
    file = run / TABLE
    if not file.is_file():
        return None
    d2t = load_file(file)[D2T]
    if len(d2t) != count:
        raise ValueError(
            f"{file} has {len(d2t)} tokens, and head.tokens={count}: take another name, or go on "
            "with that run"
        )
    return d2t


def keep(run: Path, d2t: Any) -> None:
    """Writes a table into a run's folder, whole or not at all; does nothing where there is none.

    Raises `ValueError` where the folder keeps another.
    """
    if d2t is None:
        return
    table = np.asarray(d2t, np.int64)
    there = kept(run, len(table))
    if there is not None and not np.array_equal(there, table):
        raise ValueError(f"{run / TABLE} has other tokens than the draft: take another name")
    if there is None and jax.process_index() == 0:
        partial = run / f".{TABLE}.partial"
        save_file({D2T: table}, partial)
        partial.replace(run / TABLE)

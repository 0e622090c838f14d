"""Plain decoding that can be interrupted."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from jax import Array

from jspec.decode import CHUNK, EXHAUSTED, STOPPED, Generation, autoregress, prompts
from jspec.sampling import Sampling

if TYPE_CHECKING:
    from jspec.formats.huggingface import Checkpoint

PIECE = 64


def plainly(
    target: "Checkpoint", ids: list[int], keys: Array, law: Sampling, stops: Array, *, tokens: int
) -> Iterator[Generation]:
    """Yields what `autoregress` has written so far, a piece at a time; the last is all of it.

    A token hangs on its key and position, so each piece goes on from all that is written before it.
    All pieces have one shape and share a compilation.
    """
    width = -(-(len(ids) + tokens) // CHUNK) * CHUNK
    written: list[int] = []
    stopped = False
    while len(written) < tokens and not stopped:
        batch = prompts([ids + written], context=width + PIECE, tokens=PIECE, bucket=width)
        piece = autoregress(
            target.params, batch, keys, law, stops, target=target.model, tokens=PIECE
        )
        room = tokens - len(written)
        new = np.asarray(piece.tokens)[0, : int(piece.length[0])].tolist()
        stopped = int(piece.reason[0]) == STOPPED and len(new) <= room
        written += new[:room]
        yield _generation(written, stopped)


def _generation(written: list[int], stopped: bool) -> Generation:
    count = np.array([len(written)], np.int32)
    return Generation(
        tokens=np.array([written], np.int32),
        length=count,
        guessed=np.zeros((1, len(written)), bool),
        reason=np.array([STOPPED if stopped else EXHAUSTED], np.int32),
        rounds=count,
        kept=count[:, None],
        drafted=np.zeros(1, np.int32),
    )

"""Training data: documents laid into rows of one length; a batch is a function of the step."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jspec.distill.batch import Batch
from jspec.parallel.sharding import shardings

SHORTEST = 16  # tokens of a long document that are worth beginning in what is left of a row
PERIOD = 1000  # rows after which a mixture repeats which source each row is from


class Document(NamedTuple):
    """A text: `tokens` `[n]`, how much each counts `[n]`, and the temperature of its loss."""

    tokens: np.ndarray
    weight: np.ndarray
    temperature: float = 1.0


class Source(Protocol):
    """Rows without an end, each a function of its number."""

    def rows(self, numbers: np.ndarray) -> Batch:
        """The rows of those numbers, which count from 0.

        Nothing is remembered between calls, so resuming needs nothing but the step.
        """


def batch_at(source: Source, step: int, size: int, mesh: Mesh | None = None) -> Batch:
    """The batch of a step. On a mesh, each process reads the rows of its own devices alone."""
    numbers = np.arange(step * size, (step + 1) * size)
    if mesh is None:
        return source.rows(numbers)

    @functools.cache
    def read(start: int, stop: int) -> Batch:
        return source.rows(numbers[start:stop])

    def placed(field: str) -> jax.Array:
        def piece(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(size)
            return getattr(read(start, stop), field)

        shape = (size, *getattr(sample, field).shape[1:])
        return jax.make_array_from_callback(shape, home, piece)

    home = shardings(mesh, PartitionSpec("batch"))
    own = next(iter(home.addressable_devices_indices_map((size,)).values()))[0].indices(size)
    sample = read(*own[:2])
    return Batch(*map(placed, Batch._fields))


@dataclass(frozen=True, eq=False)
class Blocks:
    """Rows of `length` tokens and their targets. Every epoch visits all in a new order.

    Attributes:
      documents: what the rows are cut from, when they are asked for.
      pieces: `[m, 3]` a document, and where a piece of it begins and ends.
      ends: `[n]`, of the pieces of each row.
    """

    documents: Sequence[Document]
    length: int
    pieces: np.ndarray
    ends: np.ndarray
    seed: int = 0

    def __len__(self) -> int:
        return len(self.ends)

    def rows(self, numbers: np.ndarray) -> Batch:
        epochs, places = np.divmod(numbers, len(self))
        orders = {
            epoch: np.random.default_rng((self.seed, epoch)).permutation(len(self))
            for epoch in set(epochs.tolist())
        }
        rows = [
            self._row(orders[epoch][place], number)
            for epoch, place, number in zip(epochs, places, numbers, strict=True)
        ]
        return Batch(*map(np.stack, zip(*rows, strict=True)))

    def _row(self, row: int, number: int) -> Batch:
        pieces = self.pieces[self.ends[row - 1] if row else 0 : self.ends[row]]
        size, place = self.length + 1, 0
        # What is left over belongs to a document of its own, which counts for nothing.
        tokens, document = np.zeros(size, np.int32), np.full(size, len(pieces), np.int32)
        weight, temperature = np.zeros(size, np.float32), np.ones(size, np.float32)
        for number, (index, start, stop) in enumerate(pieces):
            text = self.documents[index]
            here = slice(place, place + stop - start)
            tokens[here], document[here] = text.tokens[start:stop], number
            weight[here], temperature[here] = text.weight[start:stop], text.temperature
            weight[place] = 0  # nothing before it says what it is
            place = here.stop
        return Batch(tokens, document, weight[1:], temperature[1:], np.int32(number))


def pack(
    documents: Sequence[Document],
    length: int,
    *,
    lengths: Iterable[int] | None = None,
    seed: int = 0,
) -> Blocks:
    """Documents side by side in rows, each read for itself.

    One that fits into a row is never cut; a longer one goes on in the next row, which begins with
    the token that the last one ended with, so that every token is a target once.

    Args:
      lengths: of the documents, where these are dear to read. Raises `ValueError` if none has two.
    """
    pieces: list[tuple[int, int, int]] = []
    ends: list[int] = []
    room = length + 1
    if lengths is None:
        lengths = (len(text.tokens) for text in documents)
    for index, size in enumerate(lengths):
        start = 0
        while start < size - 1:
            rest = size - start
            begun = room <= length
            if begun and rest > room and (rest <= length + 1 or room < SHORTEST):
                ends.append(len(pieces))
                room = length + 1
            taken = min(rest, room)
            pieces.append((index, start, start + taken))
            start, room = start + taken - 1, room - taken
    if not pieces:
        raise ValueError("the texts hold no two tokens in a row: give some that do")
    ends.append(len(pieces))
    return Blocks(documents, length, np.array(pieces), np.array(ends), seed)


@dataclass(frozen=True, eq=False)
class Mixture:
    """Rows of several sources in proportion to their weights, to a thousandth."""

    sources: Sequence[Source]
    weights: Sequence[float]
    seed: int = 0

    def rows(self, numbers: np.ndarray) -> Batch:
        chosen, rank = self._pattern
        counts = np.bincount(chosen, minlength=len(self.sources))
        periods, places = np.divmod(numbers, PERIOD)
        drawn = []
        for period, place in zip(periods, places, strict=True):
            source = chosen[place]
            number = period * counts[source] + rank[place]
            drawn.append(self.sources[source].rows(np.array([number])))
        rows: Batch = jax.tree.map(lambda *rows: np.concatenate(rows), *drawn)
        return rows._replace(number=numbers.astype(np.int32))

    @functools.cached_property
    def _pattern(self) -> tuple[np.ndarray, np.ndarray]:
        """For each row of a period, its source and how many rows of that come before it."""
        ends = np.round(PERIOD * np.cumsum(self.weights) / np.sum(self.weights)).astype(int)
        ordered = np.searchsorted(ends, np.arange(PERIOD), side="right")
        chosen = np.random.default_rng(self.seed).permutation(ordered)
        alike = chosen[:, None] == np.arange(len(self.sources))
        return chosen, (np.cumsum(alike, axis=0) - 1)[np.arange(PERIOD), chosen]

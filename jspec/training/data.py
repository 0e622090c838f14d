"""Training data: documents packed into rows of one length; a batch is a function of the step."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from jspec.parallel.sharding import shardings

MIN_PIECE = 16  # tokens of a long document that are worth starting at the end of a row
PERIOD = 1000  # rows after which a mixture repeats which source each row comes from


class Batch(NamedTuple):
    """Rows of text: T input tokens each and, shifted by one, their T targets.

    Attributes:
      tokens: `[B, T + 1]` int32.
      document: `[B, T + 1]` int32, which document of its row a token belongs to. Attention stays
        within a document, whose positions start at 0.
      weight: `[B, T]` float32, of a target in the loss: 0 for tokens that are only read, for the
        first token of a document and for padding.
      temperature: `[B, T]` float32, of the distributions that the loss compares at a target; 0
        stands for the teacher's most likely token.
      number: `[B]` int32, of the row in its source; each row has feature noise of its own.
    """

    tokens: Array
    document: Array
    weight: Array
    temperature: Array
    number: Array

    @property
    def positions(self) -> Array:
        """`[B, T]` int32, of the input tokens in their documents."""
        document = self.document[:, :-1]
        place = jnp.arange(document.shape[1], dtype=jnp.int32)[None]
        first = jnp.pad(document[:, 1:] != document[:, :-1], ((0, 0), (1, 0)))
        starts = jnp.where(first, place, 0)
        return place - jnp.maximum.accumulate(starts, axis=1)


class Document(NamedTuple):
    """A text: `tokens` `[n]`, their loss `weight` `[n]`, and the `temperature` of the loss."""

    tokens: np.ndarray
    weight: np.ndarray
    temperature: float = 1.0


class Source(Protocol):
    """An endless sequence of rows, each a function of its number."""

    def rows(self, numbers: np.ndarray) -> Batch:
        """The rows with these numbers, counted from 0.

        A source keeps no state between calls, so a run resumes from its step alone.
        """
        ...


def batch_at(source: Source, step: int, size: int, mesh: Mesh | None = None) -> Batch:
    """The batch of a step. On a mesh, each process reads only the rows of its own devices."""
    numbers = np.arange(step * size, (step + 1) * size)
    if mesh is None:
        return source.rows(numbers)

    @functools.cache
    def read(start: int, stop: int) -> Batch:
        return source.rows(numbers[start:stop])

    def placed(field: str) -> jax.Array:
        def shard(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(size)
            return getattr(read(start, stop), field)

        shape = (size, *getattr(sample, field).shape[1:])
        return jax.make_array_from_callback(shape, sharding, shard)

    sharding = shardings(mesh, PartitionSpec("batch"))
    own = next(iter(sharding.addressable_devices_indices_map((size,)).values()))[0].indices(size)
    sample = read(*own[:2])
    return Batch(*map(placed, Batch._fields))


@dataclass(frozen=True, eq=False)
class Blocks:
    """Rows of `length` input tokens and their targets. Every epoch visits all in a new order.

    Attributes:
      documents: what the rows are cut from; a document is read when its row is.
      pieces: `[m, 3]` a document, and where a piece of it starts and stops.
      ends: `[n]` where the pieces of each row end in `pieces`.
      beginning: tokens that are read before a piece that continues a document, since models are
        served no text without them.
    """

    documents: Sequence[Document]
    length: int
    pieces: np.ndarray
    ends: np.ndarray
    seed: int = 0
    beginning: tuple[int, ...] = ()

    def __len__(self) -> int:
        """Rows of an epoch."""
        return len(self.ends)

    def rows(self, numbers: np.ndarray) -> Batch:
        """As `Source.rows`."""
        epochs, places = np.divmod(numbers, len(self))
        orders = {
            epoch: np.random.default_rng((self.seed, epoch)).permutation(len(self))
            for epoch in set(epochs.tolist())
        }
        rows = [
            self._row(int(orders[epoch][place]), number)
            for epoch, place, number in zip(
                epochs.tolist(), places.tolist(), numbers.tolist(), strict=True
            )
        ]
        columns: Any = map(np.stack, zip(*rows, strict=True))
        return Batch(*columns)

    def _row(self, row: int, number: int) -> tuple[np.ndarray, ...]:
        pieces = self.pieces[self.ends[row - 1] if row else 0 : self.ends[row]]
        size, place = self.length + 1, 0
        # Padding is a document of its own, with weight 0.
        tokens, document = np.zeros(size, np.int32), np.full(size, len(pieces), np.int32)
        weight, temperature = np.zeros(size, np.float32), np.ones(size, np.float32)
        for piece, (index, start, stop) in enumerate(pieces):
            text, first = self.documents[index], place
            if start:
                place += len(self.beginning)
                tokens[first:place] = self.beginning
            here = slice(place, place + stop - start)
            tokens[here], document[first : here.stop] = text.tokens[start:stop], piece
            weight[here], temperature[here] = text.weight[start:stop], text.temperature
            weight[place] = 0  # nothing before it predicts it, or it was predicted in another row
            place = here.stop
        return tokens, document, weight[1:], temperature[1:], np.array(number, np.int32)


def pack(
    documents: Sequence[Document],
    length: int,
    *,
    lengths: Iterable[int] | None = None,
    beginning: tuple[int, ...] = (),
    seed: int = 0,
) -> Blocks:
    """Packs documents side by side into rows; attention never crosses from one to another.

    A document that fits into a row is never cut. A longer one continues in the next row, which
    starts with the last token of the row before, so that every token is a target once.

    Args:
      lengths: of the documents, where these are expensive to read.
      beginning: tokens that are read before what continues a document.

    Raises `ValueError` if no document has two tokens, or a row no room for what it begins with.
    """
    if length <= len(beginning):
        raise ValueError(
            f"sequence_length={length}: every text begins with {len(beginning)} tokens, so make "
            "rows longer"
        )
    pieces: list[tuple[int, int, int]] = []
    ends: list[int] = []
    room = length + 1
    if lengths is None:
        lengths = (len(text.tokens) for text in documents)
    for index, size in enumerate(lengths):
        start = 0
        while start < size - 1:
            before = len(beginning) if start else 0
            rest = size - start + before
            started = room <= length
            if started and rest > room and (rest <= length + 1 or room < MIN_PIECE):
                ends.append(len(pieces))
                room = length + 1
            taken = min(rest, room)
            pieces.append((index, start, start + taken - before))
            start, room = start + taken - before - 1, room - taken
    if not pieces:
        raise ValueError("no text has two tokens: give some that do")
    ends.append(len(pieces))
    return Blocks(documents, length, np.array(pieces), np.array(ends), seed, beginning)


def count_rows_without_targets(blocks: Blocks, looked_at: int = 1000) -> tuple[int, int]:
    """How many rows hold no token to learn from, of how many that were drawn to look at."""
    count = min(len(blocks), looked_at)
    # All at once: the order of an epoch is drawn for every call.
    weight = np.asarray(blocks.rows(np.arange(count)).weight)
    return int((~weight.any(axis=1)).sum()), count


@dataclass(frozen=True, eq=False)
class Mixture:
    """Rows of several sources in proportion to their weights, to a thousandth."""

    sources: Sequence[Source]
    weights: Sequence[float]
    seed: int = 0

    def rows(self, numbers: np.ndarray) -> Batch:
        """As `Source.rows`."""
        chosen, rank = self._pattern
        counts = np.bincount(chosen, minlength=len(self.sources))
        periods, places = np.divmod(numbers, PERIOD)
        drawn = []
        for period, place in zip(periods, places, strict=True):
            source = chosen[place]
            number = period * counts[source] + rank[place]
            drawn.append(self.sources[int(source)].rows(np.array([number])))
        rows: Batch = jax.tree.map(lambda *rows: np.concatenate(rows), *drawn)
        return rows._replace(number=numbers.astype(np.int32))

    @functools.cached_property
    def _pattern(self) -> tuple[np.ndarray, np.ndarray]:
        """For each row of a period: its source, and how many rows of that source come before."""
        ends = np.round(PERIOD * np.cumsum(self.weights) / np.sum(self.weights)).astype(int)
        ordered = np.searchsorted(ends, np.arange(PERIOD), side="right")
        chosen = np.random.default_rng(self.seed).permutation(ordered)
        same = chosen[:, None] == np.arange(len(self.sources))
        return chosen, (np.cumsum(same, axis=0) - 1)[np.arange(PERIOD), chosen]

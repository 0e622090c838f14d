"""Training data: documents cut into rows of one length; the batch is a function of the step."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax
import numpy as np
from tokenizers import Tokenizer

from jspec.distill.batch import Batch

SHORTEST = 16  # tokens of a long document that are worth beginning in what is left of a row


class Source(Protocol):
    """Rows without an end."""

    def rows(self, numbers: np.ndarray) -> Batch:
        """The rows of those numbers, which count from 0 and never end.

        Nothing is remembered between calls, so resuming needs nothing but the step.
        """


def batch_at(source: Source, step: int, size: int) -> Batch:
    """The batch of a step."""
    return source.rows(np.arange(step * size, (step + 1) * size))


class Document(NamedTuple):
    """A text, `tokens` `[n]`; how much each counts, `weight` `[n]`; the loss's temperature."""

    tokens: np.ndarray
    weight: np.ndarray
    temperature: float = 1.0


@dataclass(frozen=True, eq=False)
class Blocks:
    """`content` holds n rows. Every epoch visits all of them in a new order."""

    content: Batch
    seed: int = 0

    def __len__(self) -> int:
        return len(self.content.tokens)

    def rows(self, numbers: np.ndarray) -> Batch:
        epochs, places = np.divmod(numbers, len(self))
        orders = {
            epoch: np.random.default_rng((self.seed, epoch)).permutation(len(self))
            for epoch in set(epochs.tolist())
        }
        rows = [orders[epoch][place] for epoch, place in zip(epochs, places, strict=True)]
        return jax.tree.map(lambda x: x[rows], self.content)


PERIOD = 1000


@dataclass(frozen=True, eq=False)
class Mixture:
    """Rows of several sources in proportion to their weights, to a thousandth."""

    sources: Sequence[Source]
    weights: Sequence[float]
    seed: int = 0

    def rows(self, numbers: np.ndarray) -> Batch:
        chosen, rank = self._pattern()
        counts = np.bincount(chosen, minlength=len(self.sources))
        periods, places = np.divmod(numbers, PERIOD)
        drawn = [
            self.sources[source].rows((period * counts[source] + rank[place])[None])
            for period, place in zip(periods, places, strict=True)
            for source in (chosen[place],)
        ]
        return jax.tree.map(lambda *rows: np.concatenate(rows), *drawn)

    def _pattern(self) -> tuple[np.ndarray, np.ndarray]:
        """For each row of a period, its source and how many rows of that come before it."""
        ends = np.round(PERIOD * np.cumsum(self.weights) / np.sum(self.weights)).astype(int)
        chosen = np.searchsorted(ends, np.arange(PERIOD), side="right")
        chosen = np.random.default_rng(self.seed).permutation(chosen)
        alike = chosen[:, None] == np.arange(len(self.sources))
        return chosen, (np.cumsum(alike, axis=0) - 1)[np.arange(PERIOD), chosen]


def cut(documents: Iterable[str], tokenizer: Tokenizer, end: int, length: int) -> Batch:
    """Documents, each closed by the token `end`, joined and cut into rows of `length`.

    Neighbouring rows share one token, so that every token is a target once. What is left over at
    the end is dropped. A row counts as one document, whatever it holds.
    """
    encoded = tokenizer.encode_batch(list(documents), add_special_tokens=False)
    stream = np.concatenate([np.array([*e.ids, end], np.int32) for e in encoded])
    count = (len(stream) - 1) // length
    if count == 0:
        raise ValueError(
            f"length={length}: the documents hold {len(stream)} tokens, fewer than one block"
        )
    starts = np.arange(count)[:, None] * length
    tokens = stream[starts + np.arange(length + 1)]
    ones = np.ones((count, length), np.float32)
    return Batch(tokens, np.zeros_like(tokens), ones, ones)


def pack(documents: Iterable[Document], length: int) -> Batch:
    """Documents side by side in rows of `length`, each read for itself.

    One that fits into a row is never cut; a longer one goes on in the next row, which begins with
    the token that the last one ended with, so that every token is a target once.
    """
    rows, row = [], _Row(length + 1)
    for document in documents:
        start = 0
        while start < len(document.tokens) - 1:
            rest = len(document.tokens) - start
            if rest > row.room and (rest <= length + 1 or row.room < SHORTEST):
                rows.append(row.content())
                row = _Row(length + 1)
            taken = min(rest, row.room)
            row.add(document, slice(start, start + taken))
            start += taken - 1
    if row.pieces:
        rows.append(row.content())
    if not rows:
        raise ValueError("the documents hold no two tokens: give some text")
    return Batch(*map(np.stack, zip(*rows, strict=True)))


class _Row:
    """A row that is being filled."""

    def __init__(self, size: int) -> None:
        self.room, self.pieces = size, []

    def add(self, document: Document, piece: slice) -> None:
        tokens, weight = document.tokens[piece], np.array(document.weight[piece], np.float32)
        weight[0] = 0  # nothing before it says what it is
        self.pieces.append((tokens, weight, np.full(len(tokens), document.temperature)))
        self.room -= len(tokens)

    def content(self) -> tuple[np.ndarray, ...]:
        lengths = [len(tokens) for tokens, _, _ in self.pieces]
        padding = (np.zeros(self.room), np.zeros(self.room), np.ones(self.room))
        tokens, weight, temperature = (
            np.concatenate(parts) for parts in zip(*self.pieces, padding, strict=True)
        )
        document = np.repeat(np.arange(len(lengths) + 1), [*lengths, self.room])
        return (
            tokens.astype(np.int32),
            document.astype(np.int32),
            weight[1:].astype(np.float32),
            temperature[1:].astype(np.float32),
        )

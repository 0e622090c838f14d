"""A grid in which every pair of values meets, in place of every combination of all."""

import itertools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

Row = TypeVar("Row", bound=Mapping[str, Hashable])


def pairwise(rows: Iterable[Row], first: Sequence[Row] = ()) -> list[Row]:
    """Few of `rows` that have all pairs of values that any of them has.

    Takes the row with the most pairs that no earlier one has, and of equals the first.

    Args:
      first: rows that are taken in any case.
    """
    left = [(row, pairs_of(row)) for row in rows]
    missing = set().union(*(pairs for _, pairs in left)).difference(*map(pairs_of, first))
    taken = list(first)
    while missing:
        row, pairs = max(left, key=lambda each: len(each[1] & missing))
        taken.append(row)
        missing -= pairs
    return taken


def combinations(**factors: Sequence[Hashable]) -> list[dict[str, Hashable]]:
    """Every combination of one value of each factor."""
    return [
        dict(zip(factors, values, strict=True)) for values in itertools.product(*factors.values())
    ]


def pairs_of(row: Mapping[str, Hashable]) -> set[tuple]:
    """What a row brings together, two values at a time."""
    return set(itertools.combinations(row.items(), 2))

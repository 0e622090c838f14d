"""What a study measured, one number at a time, and what can be said of several."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t as student

from jspec.formats.folder import read_json, write_json

SURE = 0.95


@dataclass(frozen=True, kw_only=True)
class Record:
    """A number: `measure` of a draft, by its kind and seed, in a domain at a served temperature.

    Attributes:
      drawn: the temperature that the draft was sampled at, where that is not the served one.
    """

    draft: str
    seed: int
    domain: str
    served: float
    measure: str
    value: float
    drawn: float | None = None


class Mean(NamedTuple):
    """A mean and half of its interval, which is None for a single number."""

    value: float
    half: float | None

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies on one side of 0; else 0."""
        return 0 if self.half is None or abs(self.value) <= self.half else int(np.sign(self.value))


def mean(values: Iterable[float]) -> Mean:
    """Student's interval of the mean, at 95%."""
    found = np.array(list(values), float)
    if len(found) == 1:
        return Mean(float(found[0]), None)
    error = found.std(ddof=1) / np.sqrt(len(found))
    return Mean(float(found.mean()), float(error * student.ppf((1 + SURE) / 2, len(found) - 1)))


@dataclass(frozen=True)
class Duel:
    """A draft against another at a served temperature, seed by seed."""

    domain: str
    served: float
    measure: str
    one: str
    other: str
    difference: Mean

    def record(self) -> dict[str, Any]:
        """For JSON."""
        fields = {name: value for name, value in vars(self).items() if name != "difference"}
        return {**fields, "difference": self.difference.value, "half": self.difference.half}


class Records:
    """Numbers, found by what they are of."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.all = tuple(records)
        self._places: dict[tuple[Any, ...], dict[int, float]] = {}
        for one in self.all:
            place = (one.draft, one.domain, one.served, one.measure, one.drawn)
            self._places.setdefault(place, {})[one.seed] = one.value

    def by_seed(
        self, draft: str, domain: str, served: float, measure: str, drawn: float | None = None
    ) -> Mapping[int, float]:
        """The numbers of a kind of draft; raises `KeyError` where nothing was measured."""
        return self._places[(draft, domain, served, measure, drawn)]

    def mean(self, *place: Any) -> Mean:
        """Over the seeds of what `by_seed` finds."""
        return mean(self.by_seed(*place).values())

    def difference(self, one: tuple[Any, ...], other: tuple[Any, ...]) -> Mean:
        """Of two places, seed by seed; one that has a single draft stands against every seed."""
        ours, theirs = self.by_seed(*one), self.by_seed(*other)
        seeds = ours if len(ours) >= len(theirs) else theirs
        pairs = [(_of(ours, seed), _of(theirs, seed)) for seed in seeds]
        return mean(a - b for a, b in pairs)

    def duel(self, domain: str, served: float, measure: str, one: str, other: str) -> Duel:
        """Of two kinds of drafts."""
        places = [(draft, domain, served, measure) for draft in (one, other)]
        return Duel(domain, served, measure, one, other, self.difference(*places))


def _of(values: Mapping[int, float], seed: int) -> float:
    return next(iter(values.values())) if len(values) == 1 else values[seed]


def kept_in(file: Path, measure: Callable[[], list[Record]]) -> list[Record]:
    """The records that `file` holds, or what is measured now and kept there."""
    if not file.is_file():
        found = measure()
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"records": [asdict(one) for one in found]})
        return found
    try:
        return [Record(**one) for one in read_json(file)["records"]]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{file} does not hold a study's records ({error!r}): delete it, and they are measured "
            "again"
        ) from error

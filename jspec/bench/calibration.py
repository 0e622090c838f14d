"""Whether guesses are kept as often as was foretold."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

BINS = 10


class Bin(NamedTuple):
    """Guesses of about one chance: how many, and the means of chances and of what was kept."""

    count: int
    chance: float
    kept: float


@dataclass(frozen=True)
class Calibration:
    """What gives guesses a chance, held against what became of them.

    Attributes:
      name: what foretold; rule: by what guesses are kept.
      bins: those of `BINS` equally wide ones that are not empty, the least chance first.
      error: the expected calibration error, the mean over guesses of how far their bin is off.
      accuracy: how often it is right to say that a guess of a chance above one half is kept.
      kept: the share of all guesses.
    """

    name: str
    rule: str
    temperature: float
    bins: tuple[Bin, ...]
    error: float
    accuracy: float
    kept: float

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "bins": [one._asdict() for one in self.bins]}


def calibration(
    chance: np.ndarray, kept: np.ndarray, *, name: str, rule: str, temperature: float
) -> Calibration:
    """Of n guesses with a `chance` `[n]` each, which were `kept` `[n]`, or are as often as that."""
    chance, kept = (np.asarray(x, np.float64) for x in (chance, kept))
    place = np.minimum((chance * BINS).astype(int), BINS - 1)
    inside = [place == number for number in range(BINS)]
    bins = tuple(
        Bin(int(here.sum()), float(chance[here].mean()), float(kept[here].mean()))
        for here in inside
        if here.any()
    )
    return Calibration(
        name,
        rule,
        temperature,
        bins,
        error=sum(one.count * abs(one.chance - one.kept) for one in bins) / len(chance),
        accuracy=float(np.where(chance > 0.5, kept, 1 - kept).mean()),
        kept=float(kept.mean()),
    )

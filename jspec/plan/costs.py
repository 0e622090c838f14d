"""What the parts of a round cost."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from jspec.core.tree import Tree

Points = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Costs:
    """Milliseconds of the parts of a round, for one batch size; between points they are a line.

    Attributes:
      target: by nodes, the target's pass over them and all else that is done once a round.
      level: by rows, one level of the draft's guesses.
      plain: one step of plain decoding.
      source: where the numbers come from.
      late: what a small model spends on a token that it has not run, at the start of a round after
        one that kept a leaf; 0 where that is part of `target`.
      start, plain_start: what comes before the first round, and before the first plain step.
      spread: how far a round may be off, relatively, as a standard deviation.
    """

    target: Points
    level: Points
    plain: float
    source: str
    start: float = 0.0
    plain_start: float = 0.0
    spread: float = 0.0
    late: float = 0.0

    def __post_init__(self) -> None:
        for name in ("target", "level"):
            points = getattr(self, name)
            numbers = np.array([number for point in points for number in point], float)
            counts = [count for count, _ in points]
            told = points and np.isfinite(numbers).all() and numbers.min() >= 0
            if not told or counts != sorted(set(counts)):
                raise ValueError(
                    f"costs {name}={points}: give pairs of a count and milliseconds, at least one, "
                    "by rising counts and all of them numbers"
                )
        if not 0 < self.plain < np.inf:
            raise ValueError(f"costs plain={self.plain}: give milliseconds")
        for name in ("start", "plain_start", "spread", "late"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"costs {name}={getattr(self, name)}: must be 0 or more")

    def round(self, tree: Tree, late: float = 0.0) -> float:
        """Milliseconds of a round over `tree`, of which a share `late` follow one that kept a
        leaf."""
        levels = float(_on(self.level, np.bincount(tree.depths[tree.inner])).sum())
        return self.verification(tree.size) + levels + late * self.late

    def verification(self, nodes: int) -> float:
        """Milliseconds of what is done once a round, over a tree of that many nodes."""
        return float(_on(self.target, [nodes])[0])

    def guess(self, rows: int = 1) -> float:
        """Milliseconds of one level of the draft's guesses."""
        return float(_on(self.level, [rows])[0])

    def guessed_in(self, took: float) -> "Costs":
        """The same with a draft that guesses in `took` milliseconds; its wider levels cost as many
        times more as these do."""
        one = self.guess()
        level = tuple((rows, ms * took / one) for rows, ms in self.level) if one else ((1, took),)
        return replace(self, level=level)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def rising(points: Sequence[tuple[int, float]]) -> Points:
    """Points in order of their counts, none of them below the one before: more rows never cost
    less, and where a measurement says so it is noise."""
    counts, values = zip(*sorted(points), strict=True)
    values = np.maximum.accumulate(np.maximum(values, 0.0))
    return tuple((int(n), float(x)) for n, x in zip(counts, values, strict=True))


def _on(points: Points, counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """The lines between points at `counts`; past the last they go on as they came."""
    n, x = np.array(points, float).T
    counts = np.asarray(counts, float)
    found = np.interp(counts, n, x)
    if len(n) > 1:
        slope = (x[-1] - x[-2]) / (n[-1] - n[-2])
        found += np.maximum(counts - n[-1], 0) * slope
    return found

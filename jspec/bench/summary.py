"""From samples to figures: medians over repetitions, with the spread."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from jspec.bench.suite import PLAIN
from jspec.bench.timing import Sample


@dataclass(frozen=True)
class Row:
    """A method at a temperature.

    Attributes:
      tokens_per_second: the median over repetitions, each over all prompts; `slowest` and
        `fastest` are the repetitions at the ends.
      speedup: the median over repetitions of the ratio to plain decoding in the same repetition.
      tokens_per_round: written tokens per forward pass of the target; None where not known.
      acceptance: guesses kept over the most that the rounds could keep; None without guesses.
      acceptance_drafted: guesses kept over the levels that were drafted, which are fewer where
        drafting stops early; None without guesses.
      waited: levels a round that were drafted for other rows of the batch after a row's own last;
        None in batches of one.
      identical: whether every token is plain decoding's; None where that cannot be expected.
    """

    method: str
    temperature: float
    tokens_per_second: float
    slowest: float
    fastest: float
    speedup: float
    tokens_per_round: float | None
    acceptance: float | None
    acceptance_drafted: float | None
    waited: float | None
    identical: bool | None


def summarise(samples: Sequence[Sample], *, coupled: Sequence[str]) -> list[Row]:
    """One row for each method and temperature, in the order in which they were first run.

    Args:
      coupled: the methods whose text must be plain decoding's at any temperature. At temperature 0
        that is expected of all.
    """
    rows = []
    for temperature in _distinct(s.temperature for s in samples):
        here = [s for s in samples if s.temperature == temperature]
        plain = _rates(here, PLAIN)
        texts = _texts(here, PLAIN)
        for method in _distinct(s.method for s in here if not s.repetition):
            rates = _rates(here, method)
            comparable = temperature == 0 or method in coupled
            rows.append(
                Row(
                    method,
                    temperature,
                    median(rates),
                    min(rates),
                    max(rates),
                    median(ours / theirs for ours, theirs in zip(rates, plain, strict=True)),
                    _per_round(here, method),
                    _acceptance(here, method),
                    _acceptance(here, method, of="levels"),
                    _waited(here, method),
                    _texts(here, method) == texts if comparable else None,
                )
            )
    return rows


def best(rows: Sequence[Row], temperature: float, methods: Sequence[str]) -> Row:
    """The fastest of some methods at a temperature."""
    here = [row for row in rows if row.temperature == temperature and row.method in methods]
    return max(here, key=lambda row: row.speedup)


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _rates(samples: Sequence[Sample], method: str) -> list[float]:
    """Tokens per second of each repetition."""
    seconds: dict[int, float] = {}
    tokens: dict[int, int] = {}
    for sample in samples:
        if sample.method == method:
            place = sample.repetition
            seconds[place] = seconds.get(place, 0.0) + sample.run.seconds
            tokens[place] = tokens.get(place, 0) + sample.run.tokens.size
    return [tokens[place] / seconds[place] for place in sorted(seconds)]


def _texts(samples: Sequence[Sample], method: str) -> list[list[list[int]]]:
    runs = [s for s in samples if s.method == method and s.repetition == 0]
    return [s.run.tokens.tolist() for s in sorted(runs, key=lambda s: s.batch)]


def _acceptance(samples: Sequence[Sample], method: str, of: str = "most") -> float | None:
    runs = [s.run for s in samples if s.method == method]
    most = sum(getattr(run, of) for run in runs)
    return sum(run.kept for run in runs) / most if most else None


def _waited(samples: Sequence[Sample], method: str) -> float | None:
    runs = [s.run for s in samples if s.method == method]
    rounds = sum(run.rounds for run in runs if run.levels and len(run.tokens) > 1)
    return sum(run.waited for run in runs) / rounds if rounds else None


def _per_round(samples: Sequence[Sample], method: str) -> float | None:
    runs = [s.run for s in samples if s.method == method]
    rounds = sum(run.rounds for run in runs)
    return sum(run.tokens.size for run in runs) / rounds if rounds else None

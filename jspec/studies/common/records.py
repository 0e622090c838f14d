"""What studies measure, one number at a time, under names that all studies share.

A record is a row of one wide table, so that the records of two studies can be joined.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t as student

CONFIDENCE = 0.95

# Fields of records with their values, and places by what they are called.
Where = Mapping[str, Any]
Places = Mapping[Any, Where]


class Measure(StrEnum):
    """Names of what is measured, the same in every study, each with its `definition`."""

    definition: str

    def __new__(cls, value: str, definition: str) -> "Measure":
        """A name with its definition; the value is the name alone."""
        one = str.__new__(cls, value)
        one._value_, one.definition = value, definition
        return one

    ACCEPTANCE_LENGTH = "acceptance_length", "mean tokens per target pass, bonus token included"
    ACCEPTANCE_RATE = "acceptance_rate", "accepted draft tokens over the depth of the tree"
    ACCEPTANCE_RATE_DRAFTED = "acceptance_rate_drafted", "the same over the levels drafted"
    ACCEPTED_BY_POSITION = "accepted_by_position", "share of rounds that accept a token there"
    CROSS_ENTROPY = "cross_entropy", "of a draft on held-out text, in nats per token"
    DRAFT_MS = "draft_ms", "milliseconds of a round that drafting takes"
    DRAFT_MS_PER_TOKEN = "draft_ms_per_token", "milliseconds of one more draft token in a chain"
    IDENTICAL_TEXTS = "identical_texts", "share of texts that are plain decoding's"
    MAX_DRAFT_TOKENS = "max_draft_tokens", "nodes of a tree below its root"
    NODE_ACCEPTANCE = "node_acceptance_rate", "share of nodes at which a candidate is accepted"
    OVERLAP = "overlap", "sum of min(p, q), what token-level rejection accepts of one draft token"
    PARAMETERS = "parameters", "of a draft; of a head without the target's embedding"
    PLAIN_CROSS_ENTROPY = "plain_cross_entropy", "of plain decoding's text, as text_cross_entropy"
    PREDICTED_SPEEDUP = "predicted_speedup", "by the planner, from other rounds"
    PREDICTED_TOKENS_PER_SECOND = "predicted_tokens_per_second", "by the planner, as the speed-up"
    ROUND_MS = "round_ms", "milliseconds of a round"
    SHARED_PREFIX = "shared_prefix", "share of tokens before the first that is not plain decoding's"
    SPEEDUP = "speedup", "tokens per second over plain decoding's, median over repetitions"
    TEXT_CROSS_ENTROPY = "text_cross_entropy", "of a text under the target, in nats per token"
    TOKENS_PER_SECOND = "tokens_per_second", "median over repetitions"
    TOKENS_PER_SECOND_SPREAD = "tokens_per_second_spread", "half the range over repetitions"
    TOTAL_VARIATION = "total_variation", "of three tokens, from the target's distribution"
    TOTAL_VARIATION_BY_CHANCE = "total_variation_by_chance", "the same of the target's own draws"


@dataclass(frozen=True, kw_only=True)
class Record:
    """A number, and what it was measured of; fields that do not apply are empty.

    Attributes:
      draft: its kind or name; `plain` for plain decoding.
      domain: of the texts.
      temperature: of target and draft; draft_temperature: of the draft where that is another.
      method: a rule over a tree with all that belongs to it, as its study calls it.
      group: what was timed in turns with each other.
      position: of a draft token, from 1 on.
    """

    measure: Measure
    value: float
    draft: str
    seed: int = 0
    target: str = ""
    domain: str = ""
    temperature: float | None = None
    draft_temperature: float | None = None
    rule: str = ""
    tree: str = ""
    stop: str = ""
    method: str = ""
    group: str = ""
    batch: int | None = None
    position: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "measure", Measure(self.measure))

    def record(self) -> dict[str, Any]:
        """For JSON, without the fields that are empty."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}


def records_of(values: Mapping[Measure, float], **place: Any) -> Iterator[Record]:
    """A record of each of the values, all measured of one place."""
    for measure, value in values.items():
        yield Record(measure=measure, value=value, **place)


class Mean(NamedTuple):
    """A mean and half of its interval's width, which is None for a single number.

    >>> f"{Mean(0.15, 0.052):+.2f}"
    '+0.15 ± 0.05'
    """

    value: float
    half: float | None

    def __format__(self, form: str) -> str:
        interval = "" if self.half is None else f" ± {self.half:{form.lstrip('+')}}"
        return f"{self.value:{form}}{interval}"

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
    quantile = student.ppf((1 + CONFIDENCE) / 2, len(found) - 1)
    return Mean(float(found.mean()), float(error * quantile))


class PairedDifference(NamedTuple):
    """A measure of `one` minus that of the `other`, seed by seed."""

    measure: Measure
    one: str
    other: str
    domain: str
    temperature: float
    tree: str
    difference: Mean

    @property
    def cell(self) -> tuple[str, float, str]:
        """Domain, temperature and tree."""
        return self.domain, self.temperature, self.tree


class Records:
    """Numbers, found by what they were measured of.

    >>> records = Records([Record(measure="speedup", value=2.0, draft="wide", temperature=0.0)])
    >>> records.value("speedup", draft="wide", temperature=0.0)
    2.0
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self.all = tuple(records)
        self._places: dict[tuple[Measure, float | None], list[Record]] = {}
        for one in self.all:
            self._places.setdefault((one.measure, one.temperature), []).append(one)

    def by_seed(
        self, measure: Measure, *, temperature: float | None = None, **where: Any
    ) -> Mapping[int, float]:
        """The values of the records whose fields are as `where` says; raises `KeyError` where there
        are none, or several of one seed. A draft's temperature that is not given is the target's.
        """
        where = {"draft_temperature": None, **where}
        here = [
            one
            for one in self._places.get((measure, temperature), ())
            if all(getattr(one, field) == value for field, value in where.items())
        ]
        found = {one.seed: one.value for one in here}
        if not here or len(found) < len(here):
            count = "several records" if here else "no record"
            raise KeyError(f"{count} of {measure} at temperature {temperature} with {where}")
        return found

    def mean(self, measure: Measure, **where: Any) -> Mean:
        """Over the seeds of what `by_seed` finds."""
        return mean(self.by_seed(measure, **where).values())

    def value(self, measure: Measure, **where: Any) -> float:
        """That mean alone."""
        return self.mean(measure, **where).value

    def means(
        self, rows: Places, columns: Places, *, over: Where | None = None, **where: Any
    ) -> dict[str, list[Mean]]:
        """Means by the fields of rows and columns, which stand under what they are called; each
        over another place, seed by seed, where one is given."""

        def cell(row: Where, column: Where) -> Mean:
            here = {**column, **where}
            return self.mean(**row, **here) if over is None else self.difference(row, over, **here)

        return {
            name: [cell(row, column) for column in columns.values()] for name, row in rows.items()
        }

    def difference(self, one: Where, other: Where, **where: Any) -> Mean:
        """Of two places that differ in some fields, seed by seed; one that has a single seed stands
        against every seed of the other."""
        ours, theirs = (self.by_seed(**place, **where) for place in (one, other))
        seeds = ours if len(ours) >= len(theirs) else theirs
        return mean(_of(ours, seed) - _of(theirs, seed) for seed in seeds)

    def compare(
        self, measure: Measure, one: str, other: str, *, field: str = "draft", **where: Any
    ) -> PairedDifference:
        """Of two values of a field, all else equal."""
        found = self.difference({field: one}, {field: other}, measure=measure, **where)
        place = where["domain"], where["temperature"], where.get("tree", "")
        return PairedDifference(measure, one, other, *place, found)


def _of(values: Mapping[int, float], seed: int) -> float:
    """That of the seed, or the only one there is."""
    return values[seed] if len(values) > 1 else next(iter(values.values()))

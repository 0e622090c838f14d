"""What the draft-shape study found, computed from its records."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import kendalltau, spearmanr

from jspec.bench.suite import PLAIN
from jspec.studies.records import Records
from jspec.studies.shape_gauge import (
    FORETOLD,
    FORETOLD_OVER,
    KEPT,
    LATENCY,
    LOSS,
    OVER,
    PER_SECOND,
    SIZE,
    at,
    in_batch,
)
from jspec.studies.shape_recipe import DraftShapeStudy, called

# What the paper says that its designed draft gains over the best ordinary one, in its versions.
PUBLISHED = 0.60, 1.11


class Place(NamedTuple):
    """A target, a temperature and a batch size: where drafts are ranked."""

    target: str
    served: float
    batch: int


@dataclass(frozen=True)
class Standing:
    """A draft in a place, at its own best depth, as measured and as foretold.

    `per_second` is its speed-up times what plain decoding wrote on average beside all drafts: they
    were timed one after the other, and a machine is not the same all the while.
    """

    draft: str
    place: Place
    parameters: int
    loss: float
    kept: float
    latency: float
    depth: int
    speedup: float
    per_second: float
    foretold_depth: int
    foretold: float

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "place": self.place._asdict()}


class Relation(NamedTuple):
    """How a draft's number goes with its tokens a second, over all drafts of a place: Spearman's
    and Kendall's coefficients."""

    place: Place
    what: str
    spearman: float
    kendall: float


class Contest(NamedTuple):
    """The best of the shapes of one layer against the best of more, of equal parameters."""

    place: Place
    designed: Standing
    ordinary: Standing

    @property
    def gain(self) -> float:
        """Tokens a second that the one writes more than the other, relatively."""
        return self.designed.speedup / self.ordinary.speedup - 1


@dataclass(frozen=True)
class Foretelling:
    """How well the planner did: relative errors of tokens a second over all experiments, and for
    each place Kendall's tau of the order of all chains (every draft at every depth), and of the
    drafts, each at its best depth, which can differ by less than a machine's pace drifts."""

    errors: np.ndarray
    chains: dict[Place, float]
    order: dict[Place, float]

    @property
    def median(self) -> float:
        """Of the errors' sizes."""
        return float(np.median(np.abs(self.errors)))


def places(recipe: DraftShapeStudy, records: Records) -> list[Place]:
    """All in which there are drafts."""
    targets = [name for name in recipe.targets if any(x.domain == name for x in records.all)]
    return [
        Place(target, served, batch)
        for target in targets
        for served in recipe.served
        for batch in recipe.batches
    ]


def standings(recipe: DraftShapeStudy, records: Records, place: Place) -> list[Standing]:
    """Every draft of a place, the fastest first."""
    drafts = dict.fromkeys(x.draft for x in records.all if x.domain == place.target)

    def value(draft: str, measure: str, served: float = place.served) -> float:
        return records.mean(draft, place.target, served, measure).value

    plain = np.mean([value(draft, in_batch(PLAIN, place.batch)) for draft in drafts])

    def best(draft: str, measure: str) -> tuple[int, float]:
        found = {depth: value(draft, at(measure, depth, place.batch)) for depth in recipe.depths}
        depth = max(found, key=found.__getitem__)
        return depth, found[depth]

    told = []
    for draft in drafts:
        depth, speedup = best(draft, OVER)
        foretold_depth, foretold = best(draft, FORETOLD_OVER)
        told.append(
            Standing(
                draft,
                place,
                int(value(draft, SIZE, 0.0)),
                value(draft, LOSS, 0.0),
                value(draft, KEPT),
                value(draft, in_batch(LATENCY, place.batch)),
                depth,
                speedup,
                float(speedup * plain),
                foretold_depth,
                foretold,
            )
        )
    return sorted(told, key=lambda one: -one.speedup)


# What might go with tokens a second.
NUMBERS: dict[str, Callable[[Standing], float]] = {
    "latency": lambda one: one.latency,
    "language-model loss": lambda one: one.loss,
    "acceptance": lambda one: one.kept,
    "parameters": lambda one: one.parameters,
}


def relations(found: Sequence[Standing]) -> list[Relation]:
    """Of each number with tokens a second, among drafts of one place; a number that is the same for
    all goes with nothing."""
    speeds = [one.speedup for one in found]
    told = []
    for what, number in NUMBERS.items():
        values = [number(one) for one in found]
        both = 0.0, 0.0
        if len(set(values)) > 1:
            both = spearmanr(values, speeds).statistic, kendalltau(values, speeds).statistic
        told.append(Relation(found[0].place, what, *map(float, both)))
    return told


def contest(recipe: DraftShapeStudy, found: Sequence[Standing]) -> Contest:
    """Of equal parameters, in one place."""
    ordinary = [called(text) for text in recipe.deeper]
    designed = [called(text) for text in (recipe.one, *recipe.designed)]
    # They come with the fastest first.
    one, other = (next(x for x in found if x.draft in names) for names in (designed, ordinary))
    return Contest(found[0].place, one, other)


def foretelling(recipe: DraftShapeStudy, records: Records) -> Foretelling:
    """Over everything that was both foretold and measured."""
    errors, chains, order = [], {}, {}
    for place in places(recipe, records):
        found = standings(recipe, records, place)
        pairs = [
            tuple(
                records.mean(
                    one.draft, place.target, place.served, at(measure, depth, place.batch)
                ).value
                for measure in (FORETOLD, PER_SECOND)
            )
            for one in found
            for depth in recipe.depths
        ]
        errors += [told / was - 1 for told, was in pairs]
        chains[place] = _tau(pairs)
        order[place] = _tau([(one.foretold, one.speedup) for one in found])
    return Foretelling(np.array(errors), chains, order)


def _tau(pairs: Sequence[tuple[float, float]]) -> float:
    return float(kendalltau(*zip(*pairs, strict=True)).statistic)

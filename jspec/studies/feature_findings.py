"""What the numbers of the feature-draft study say to its questions."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count, takewhile
from typing import Any

from jspec.studies.feature_gauge import (
    DRAFT_MS,
    PER_ROUND,
    PER_SECOND,
    ROUND_MS,
    SIZE,
    SPEEDUP,
    kept,
    on,
)
from jspec.studies.material import AWAY, HOME
from jspec.studies.recipe import WIDE, FeatureDraftStudy
from jspec.studies.records import Duel, Mean, Records

BASE, WHOLE = "eagle", "fspad"
# FSPAD's changes, and what stands for its parameters alone.
PARTS = ("sampling_alone", "alignment_alone", WIDE)


@dataclass(frozen=True)
class Standing:
    """A draft over a tree at a served temperature, in domain: the mean over seeds of the tokens a
    round, and what one of its kind was timed at."""

    draft: str
    tree: str
    served: float
    parameters: int
    per_round: Mean
    draft_ms: float
    round_ms: float
    per_second: float
    speedup: float

    def record(self) -> dict[str, Any]:
        """For JSON."""
        found = asdict(self)
        return {**found, "per_round": self.per_round.value, "half": self.per_round.half}


@dataclass(frozen=True)
class Equals:
    """The head that keeps most tokens a round at a temperature, and the small model whose guesses
    take nearest to as long."""

    head: Standing
    rival: Standing

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {"head": self.head.record(), "rival": self.rival.record()}


@dataclass(frozen=True)
class FeatureFindings:
    """Answers, in tokens a round: `over_base` of each kind of head over EAGLE's, `over_wide` of
    FSPAD's over EAGLE's with as many parameters; `equals` in latency, of heads and small models."""

    over_base: tuple[Duel, ...]
    over_wide: tuple[Duel, ...]
    equals: tuple[Equals, ...]
    standings: tuple[Standing, ...]


def feature_findings(recipe: FeatureDraftStudy, records: Records) -> FeatureFindings:
    """All of them."""
    kinds = [kind for kind in recipe.kinds if kind != BASE]
    standings = tuple(_standings(recipe, records))
    return FeatureFindings(
        tuple(_duels(recipe, records, kinds, BASE)),
        tuple(_duels(recipe, records, [WHOLE], WIDE) if WIDE in kinds else ()),
        tuple(_equals(recipe, standings)),
        standings,
    )


def depths(records: Records, tree: str) -> list[int]:
    """Of the nodes that a tree may have."""
    measures = {one.measure for one in records.all}
    return list(takewhile(lambda depth: on(kept(depth), tree) in measures, count(1)))


def _duels(
    recipe: FeatureDraftStudy, records: Records, kinds: list[str], other: str
) -> Iterator[Duel]:
    for domain in (HOME, AWAY):
        for served in recipe.served:
            for tree in (recipe.tree, recipe.growth):
                for kind in kinds:
                    yield records.duel(domain, served, on(PER_ROUND, tree), kind, other)


def _standings(recipe: FeatureDraftStudy, records: Records) -> Iterator[Standing]:
    heads = [(kind, tree) for kind in recipe.kinds for tree in (recipe.tree, recipe.growth)]
    rivals = [(draft, tree) for draft in recipe.drafts for tree in recipe.draft_trees]
    for served in recipe.served:
        for draft, tree in heads + rivals:
            numbers = {
                measure: records.mean(draft, HOME, served, on(measure, tree)).value
                for measure in (DRAFT_MS, ROUND_MS, PER_SECOND, SPEEDUP)
            }
            yield Standing(
                draft,
                tree,
                served,
                int(records.mean(draft, HOME, served, SIZE).value),
                records.mean(draft, HOME, served, on(PER_ROUND, tree)),
                *numbers.values(),
            )


def _equals(recipe: FeatureDraftStudy, standings: tuple[Standing, ...]) -> Iterator[Equals]:
    for served in recipe.served if recipe.drafts and recipe.draft_trees else ():
        here = [one for one in standings if one.served == served]
        heads = [one for one in here if one.draft in recipe.kinds]
        best = max(heads, key=lambda one: one.per_round.value)
        rivals = [one for one in here if one.draft in recipe.drafts]
        yield Equals(best, min(rivals, key=lambda one: abs(one.draft_ms - best.draft_ms)))

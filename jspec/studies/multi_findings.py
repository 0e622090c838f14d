"""What the multi-candidate study found, computed from its records."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from jspec.studies.multi_candidate import FASTEST, HEADLINE, STOPPING, headline
from jspec.studies.multi_gauge import CHANCE, DRIFT, EQUAL, NATS, OVER, VARIATION
from jspec.studies.multi_recipe import DECIDING, MultiCandidateStudy, Way
from jspec.studies.records import Records

# What the paper says that it gains at most (abstract, versions 2 and 3).
PUBLISHED_GAIN = 0.275


class Factor(NamedTuple):
    """How many times as fast one way is as another."""

    what: str
    one: Way
    other: Way
    times: float


@dataclass(frozen=True)
class Headline:
    """At a temperature the faster of the fastest tree and of the best way to stop early, which is
    `best`; what it gains over the baseline and over the best plain chain, what the `early` one
    gains over that chain, and what each part of it brings."""

    served: float
    best: Way
    chain: Way
    over_baseline: Factor
    over_chain: Factor
    early: Factor
    parts: tuple[Factor, ...]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        factors = (self.over_baseline, self.over_chain, self.early, *self.parts)
        return {
            "served": self.served,
            "best": self.best.name,
            "chain": self.chain.name,
            "factors": [
                {"what": f.what, "one": f.one.name, "other": f.other.name, "times": f.times}
                for f in factors
            ],
        }


def headlines(recipe: MultiCandidateStudy, records: Records) -> list[Headline]:
    """One for each temperature."""
    trees = fastest_trees(records)
    return [_headline(recipe, records, served, trees[served]) for served in recipe.served]


def fastest_trees(records: Records) -> dict[float, str]:
    """What `tree=auto` took at each temperature."""
    return {one.served: one.draft for one in records.all if one.domain == FASTEST}


def _headline(
    recipe: MultiCandidateStudy, records: Records, served: float, fastest: str
) -> Headline:
    ways = headline(recipe, records, served, fastest)

    def over(way: Way) -> float:
        return records.mean(way.name, HEADLINE, served, OVER).value

    def factor(what: str, one: Way, other: Way) -> Factor:
        return Factor(what, one, other, over(one) / over(other))

    chains = [way for way in ways if way.is_chain]
    chain = max(chains, key=over)
    tree = Way("coupled", fastest)
    early = max((way for way in ways if way.kind == STOPPING and way.sliced), key=over)
    best = max((tree, early), key=over)
    coupled, whole = Way("coupled", recipe.baseline), early._replace(stop="")
    unsliced = early._replace(sliced=False)
    return Headline(
        served,
        best,
        chain,
        factor("the exact improved method over the baseline", best, recipe.mcsd),
        factor("and over the best plain chain", best, chain),
        factor("the best way to stop early over the best plain chain", early, chain),
        (
            factor("coupling, on the baseline's tree", coupled, recipe.mcsd),
            factor("the tree's shape", tree, coupled),
            factor("that tree in the place of the baseline's", whole, coupled),
            factor("stopping early, on its own tree", unsliced, whole),
            factor("slicing what was drafted", early, unsliced),
        ),
    )


def deciders(
    recipe: MultiCandidateStudy, records: Records, served: float
) -> dict[Way, list[Factor]]:
    """By rule and tree that are drafted to their end, what each decider brings there at its best
    threshold, the best first."""
    found: dict[Way, dict[str, Factor]] = {}
    for group in DECIDING:
        for way in recipe.groups()[group]:
            if way.stop:
                whole, name = way._replace(stop=""), way.stop.rpartition(":")[0] or way.stop
                ours, theirs = (
                    records.mean(one.name, group, served, OVER).value for one in (way, whole)
                )
                one = Factor(name, way, whole, ours / theirs)
                here = found.setdefault(whole, {})
                here[name] = max(here.get(name, one), one, key=lambda factor: factor.times)
    return {
        whole: sorted(here.values(), key=lambda one: -one.times) for whole, here in found.items()
    }


def own_best(
    recipe: MultiCandidateStudy, records: Records, served: float
) -> list[tuple[Way, float]]:
    """Of every kind of ways that were timed side by side the fastest, over plain decoding, the
    fastest kind first."""
    found: dict[str, tuple[float, Way]] = {}
    for way in headline(recipe, records, served, fastest_trees(records)[served]):
        if way.sliced:
            speed = records.mean(way.name, HEADLINE, served, OVER).value
            found[way.kind] = max(found.get(way.kind, (0.0, way)), (speed, way))
    return [(way, speed) for speed, way in sorted(found.values(), reverse=True)]


class Drift(NamedTuple):
    """How far a way drifts: texts that are plain decoding's at temperature 0, total variation of
    three tokens and what chance gives (None where it was not counted), and nats a token at each
    temperature, its own and plain decoding's."""

    way: Way
    equal: float | None
    variation: float | None
    chance: float | None
    nats: dict[float, tuple[float, float]]


def drifts(recipe: MultiCandidateStudy, records: Records) -> Iterator[Drift]:
    """Of all ways that were looked at."""
    named = {way.name: way for group in recipe.groups().values() for way in group}
    named |= {way.name: way for way in (recipe.mcsd, Way("coupled", recipe.baseline))}
    here = [one for one in records.all if one.domain == DRIFT]
    for name in dict.fromkeys(one.draft for one in here):
        mine = {(one.measure, one.served): one.value for one in here if one.draft == name}
        yield Drift(
            named[name],
            next((value for (what, _), value in mine.items() if what == EQUAL), None),
            next((value for (what, _), value in mine.items() if what == VARIATION), None),
            next((value for (what, _), value in mine.items() if what == CHANCE), None),
            {
                served: (mine[f"{NATS}, written", served], mine[f"{NATS}, plain", served])
                for served in recipe.served
            },
        )

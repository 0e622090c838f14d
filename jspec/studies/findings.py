"""What the numbers of the temperature study say to its three questions."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jspec.distill.temperatures import Temperatures, read_temperatures
from jspec.studies.gauge import NODE_RULES, OVERLAP, PER_ROUND, at_node
from jspec.studies.material import AWAY, HOME
from jspec.studies.recipe import TemperatureStudy
from jspec.studies.records import Duel, Mean, Records
from jspec.studies.temperature import UNTAUGHT

HOT = 1.5  # from where on the third question asks
ACCEPTANCES = {"overlap (one candidate)": OVERLAP, **{rule: at_node(rule) for rule in NODE_RULES}}


@dataclass(frozen=True)
class Fall:
    """The acceptance of a kind of draft at the first served temperature, at its lowest, and at the
    last; `lowest` is the temperature of that."""

    draft: str
    rule: str
    first: float
    least: float
    lowest: float
    last: float


@dataclass(frozen=True)
class Control:
    """Overlap in domain: of drafts sampled as they are served, and at the best of all temperatures
    that were tried, which teaches nothing; and how much better the matched draft is than that."""

    served: float
    untaught: float
    untaught_best: float
    untaught_drawn: float
    reference: Mean
    reference_best: Mean
    reference_drawn: float
    matched: Mean | None
    over_reference: Mean | None


@dataclass(frozen=True)
class Findings:
    """Answers, in the order of the questions."""

    falls: tuple[Fall, ...]
    duels: tuple[Duel, ...]
    controls: tuple[Control, ...]
    rules: tuple[Duel, ...]


def findings(recipe: TemperatureStudy, records: Records) -> Findings:
    """All of them."""
    return Findings(
        tuple(_falls(recipe, records)),
        tuple(_duels(recipe, records)),
        tuple(_controls(recipe, records)),
        tuple(_rules(recipe, records)),
    )


def matched(recipe: TemperatureStudy, served: float) -> str | None:
    """The one of `taught` that is this temperature."""
    alone = Temperatures((float(served),))
    return next((t for t in recipe.taught if read_temperatures("taught", t) == alone), None)


def _falls(recipe: TemperatureStudy, records: Records) -> Iterator[Fall]:
    for draft in (UNTAUGHT, recipe.reference):
        for rule, measure in ACCEPTANCES.items():
            found = {
                served: records.mean(draft, HOME, served, measure).value
                for served in sorted(recipe.served)
            }
            lowest = min(found, key=found.__getitem__)
            first, last = found[min(found)], found[max(found)]
            yield Fall(draft, rule, first, found[lowest], lowest, last)


def _duels(recipe: TemperatureStudy, records: Records) -> Iterator[Duel]:
    """The matched draft against those of T = 1, of T = 0, of ranges and sets, and the untaught."""
    others = [t for t in recipe.taught if "," in t or ".." in t]
    rivals = list(dict.fromkeys((recipe.reference, matched(recipe, 0.0), *others)))
    for domain in (HOME, AWAY):
        for served in recipe.served:
            ours = matched(recipe, served)
            for rival in (*rivals, UNTAUGHT) if ours else ():
                if rival == ours or rival not in (*recipe.taught, UNTAUGHT):
                    continue
                for measure in (OVERLAP, PER_ROUND):
                    yield records.duel(domain, served, measure, ours, rival)


def _controls(recipe: TemperatureStudy, records: Records) -> Iterator[Control]:
    for served in recipe.served:
        if not served:
            continue

        def value(draft: str, drawn: float | None = None, served: float = served) -> Mean:
            return records.mean(draft, HOME, served, OVERLAP, drawn)

        def best(draft: str, value: Any = value) -> float:
            return max(recipe.drawn, key=lambda drawn: value(draft, drawn).value)

        cold, warm, ours = best(UNTAUGHT), best(recipe.reference), matched(recipe, served)
        rival = (recipe.reference, HOME, served, OVERLAP, warm)
        yield Control(
            served,
            value(UNTAUGHT).value,
            value(UNTAUGHT, cold).value,
            cold,
            value(recipe.reference),
            value(recipe.reference, warm),
            warm,
            value(ours) if ours else None,
            records.difference((ours, HOME, served, OVERLAP), rival) if ours else None,
        )


def _rules(recipe: TemperatureStudy, records: Records) -> Iterator[Duel]:
    """Coupled candidates against the other rules at one node, of the drafts of reference."""
    for domain in (HOME, AWAY):
        for served in recipe.served:
            for rule in NODE_RULES:
                if rule != "coupled":
                    places = [
                        (recipe.reference, domain, served, at_node(r)) for r in ("coupled", rule)
                    ]
                    yield Duel(
                        domain,
                        served,
                        "one node",
                        "coupled",
                        rule,
                        records.difference(*places),
                    )

"""What a person reads of the temperature study: `report.md`, and the numbers in `results.json`."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jspec.bench.machine import machine
from jspec.bench.suite import PLAIN
from jspec.studies import figures
from jspec.studies.findings import HOT, Findings, findings
from jspec.studies.gauge import NODE_RULES, OVERLAP, PER_ROUND, at_node, decoded, methods
from jspec.studies.material import AWAY, HOME
from jspec.studies.recipe import TemperatureStudy
from jspec.studies.records import Duel, Records
from jspec.studies.temperature import PER_SECOND, SPEEDUP, UNTAUGHT
from jspec.studies.writing import publish, signed, spread, table


def write(recipe: TemperatureStudy, records: Records) -> list[str]:
    """Writes report, numbers and figures below `output/name`; the answers."""
    found, about = findings(recipe, records), machine()
    drawn = figures.draw(recipe, records, recipe.folder)
    said = list(answers(recipe, found))
    computed = {
        "differences": [duel.record() for duel in (*found.duels, *found.rules)],
        "controls": [dataclasses.asdict(control) for control in found.controls],
    }
    publish(recipe, records, about, said, computed, _lines(recipe, records, found, about, drawn))
    return said


def answers(recipe: TemperatureStudy, found: Findings) -> Iterator[str]:
    """The three questions, each answered in a line or two by the numbers."""
    coldest, hottest = min(recipe.served), max(recipe.served)
    for fall in found.falls:
        yield (
            f"{fall.rule}, {_name(fall.draft)}: {fall.first:.3f} at T={coldest:g}, least at "
            f"T={fall.lowest:g} with {fall.least:.3f} ({fall.least - fall.first:+.3f}), "
            f"{fall.last:.3f} at T={hottest:g}."
        )
    for other in dict.fromkeys(duel.other for duel in found.duels):
        for domain in (HOME, AWAY):
            here = [d for d in found.duels if (d.other, d.domain) == (other, domain)]
            duels = [d for d in here if d.measure == OVERLAP]
            if duels:
                yield f"Matched against {_name(other)}, {domain}: {_count(duels)}."
    for control in found.controls:
        if control.over_reference is not None:
            yield (
                f"At T={control.served:g} the matched draft's overlap is "
                f"{signed(control.over_reference)} over that of the draft taught at "
                f"{recipe.reference}, sampled at the best temperature for it, "
                f"{control.reference_drawn:g}."
            )
    for rule in dict.fromkeys(duel.other for duel in found.rules):
        for duel in found.rules:
            if duel.other == rule and duel.domain == HOME and duel.served >= HOT:
                yield (
                    f"Coupled against {rule} at T={duel.served:g}, {recipe.width} candidates: "
                    f"{signed(duel.difference)}."
                )


def _count(duels: Sequence[Duel]) -> str:
    won = sum(d.difference.sign > 0 for d in duels)
    lost = sum(d.difference.sign < 0 for d in duels)
    each = ", ".join(f"T={d.served:g} {signed(d.difference)}" for d in duels)
    return (
        f"better in {won} of {len(duels)} cells, worse in {lost}, undecided in "
        f"{len(duels) - won - lost} ({each})"
    )


def _lines(
    recipe: TemperatureStudy,
    records: Records,
    found: Findings,
    about: dict[str, Any],
    drawn: Sequence[tuple[str, str]],
) -> Iterator[str]:
    yield "# Taught at one temperature, served at another\n"
    yield _setting(recipe, about)
    yield "\n## What was found\n"
    yield from (f"- {line}" for line in answers(recipe, found))
    for file, title in drawn:
        yield f"\n![{title}]({file})"
    yield from _acceptance(recipe, records)
    yield from _speed(recipe, records)
    for kind in (UNTAUGHT, recipe.reference):
        yield from _rules(recipe, records, kind)
    yield from _control(recipe, found)
    yield from _diagonal(found)


def _setting(recipe: TemperatureStudy, about: dict[str, Any]) -> str:
    teaching = recipe.teaching
    tokens = teaching.steps * teaching.batch * teaching.length
    return (
        f"Target `{teaching.target}`, draft `{teaching.draft or 'fresh'}`. Every draft is taught "
        f"{teaching.steps:,} steps of {teaching.batch} rows of {teaching.length} tokens "
        f"({tokens:,} in all) that hold {teaching.answers.count} answers of the target, of up to "
        f"{teaching.answers.tokens} tokens, and their prompts; {recipe.seeds} seeds, each with "
        "prompts, answers and an order of its own. The temperature of answers and loss is tied, "
        "and is the row; both models are sampled at the column's. Measured on "
        f"{recipe.prompts} prompts of each domain, {recipe.tokens} new tokens, the same for all; "
        "± is Student's 95% interval over seeds, and says nothing of other texts. Losses carry no "
        f"factor of T². {about['device']}, {about['cores']} cores, jax {about['jax']}."
    )


def _acceptance(recipe: TemperatureStudy, records: Records) -> Iterator[str]:
    kinds = [UNTAUGHT, *recipe.taught]
    for domain in (HOME, AWAY):
        yield f"\n## Overlap, {domain}: what token-level rejection keeps of one draw\n"
        yield from _matrix(recipe, kinds, _cell(records, domain, OVERLAP))
    for domain in (HOME, AWAY):
        yield f"\n## Tokens a round, {domain}: coupled, `{recipe.tree}`, by decoding\n"
        yield from _matrix(recipe, kinds, _cell(records, domain, PER_ROUND, digits=2))


def _speed(recipe: TemperatureStudy, records: Records) -> Iterator[str]:
    def cell(kind: str, served: float) -> str:
        rate, gain = (records.mean(kind, HOME, served, m).value for m in (PER_SECOND, SPEEDUP))
        return f"{rate:.0f} ({gain:.2f})"

    yield "\n## Tokens a second, seed 0, and over plain decoding at the same temperature\n"
    yield from _matrix(recipe, [PLAIN, UNTAUGHT, *recipe.taught], cell)


def _rules(recipe: TemperatureStudy, records: Records, kind: str) -> Iterator[str]:
    one = "one candidate, token level"
    measures = {one: OVERLAP, **{rule: at_node(rule) for rule in NODE_RULES}}
    rounds = {name: decoded(name) for name in methods(recipe.width)}
    yield f"\n## Rules side by side, draft {_name(kind)}: one node, {recipe.width} candidates\n"
    for named, digits in ((measures, 3), (rounds, 2)):
        if named is rounds:
            yield f"\nTokens a round by decoding, {recipe.width} candidates a round:\n"
        yield from _matrix(
            recipe,
            named,
            lambda name, served, named=named, digits=digits: spread(
                records.mean(kind, HOME, served, named[name]), digits
            ),
        )


def _control(recipe: TemperatureStudy, found: Findings) -> Iterator[str]:
    yield "\n## The free control: the draft sampled at another temperature\n"
    yield "Overlap, in domain, as served and at the best temperature of the draft alone.\n"
    taught = _name(recipe.reference)
    head = ("served", "untaught", "its best", taught, "its best", "matched", "over that best")
    rows = (
        (
            f"{one.served:g}",
            f"{one.untaught:.3f}",
            f"{one.untaught_best:.3f} at {one.untaught_drawn:g}",
            spread(one.reference),
            f"{spread(one.reference_best)} at {one.reference_drawn:g}",
            "" if one.matched is None else spread(one.matched),
            "" if one.over_reference is None else signed(one.over_reference),
        )
        for one in found.controls
    )
    yield from table(head, rows)


def _diagonal(found: Findings) -> Iterator[str]:
    yield "\n## The diagonal: matched drafts against others, seed by seed\n"
    head = ("domain", "served", "measure", "against", "matched is better by", "")
    rows = (
        (
            duel.domain,
            f"{duel.served:g}",
            duel.measure,
            _name(duel.other),
            signed(duel.difference),
            {1: "better", 0: "undecided", -1: "worse"}[duel.difference.sign],
        )
        for duel in found.duels
    )
    yield from table(head, rows)


def _matrix(
    recipe: TemperatureStudy, rows: Iterable[str], cell: Callable[[str, float], str]
) -> Iterator[str]:
    """Rows against served temperatures."""
    yield from table(
        ("", *(f"T={served:g}" for served in recipe.served)),
        ((_name(row), *(cell(row, served) for served in recipe.served)) for row in rows),
    )


def _cell(
    records: Records, domain: str, measure: str, digits: int = 3
) -> Callable[[str, float], str]:
    return lambda kind, served: spread(records.mean(kind, domain, served, measure), digits)


def _name(kind: str) -> str:
    """A kind of draft as a reader knows it."""
    return f"taught at {kind}" if kind[:1].isdigit() or kind[:1] == "." else kind

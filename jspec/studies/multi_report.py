"""What a person reads of the multi-candidate study."""

from collections.abc import Iterator, Sequence
from typing import Any

from jspec.bench.machine import machine
from jspec.bench.suite import PLAIN
from jspec.studies import multi_figures
from jspec.studies.multi_candidate import HEADLINE
from jspec.studies.multi_findings import (
    PUBLISHED_GAIN,
    Drift,
    Factor,
    Headline,
    deciders,
    drifts,
    headlines,
    own_best,
)
from jspec.studies.multi_gauge import DRAFTED, FIXED, NODES, OVER, PER_ROUND, PER_SECOND, SPREAD
from jspec.studies.multi_recipe import MultiCandidateStudy
from jspec.studies.records import Records
from jspec.studies.writing import publish, table

COLUMNS = PER_SECOND, SPREAD, OVER, PER_ROUND, FIXED, DRAFTED, NODES
DIGITS = {PER_SECOND: 0, SPREAD: 0, NODES: 0}


def write(recipe: MultiCandidateStudy, records: Records) -> list[str]:
    """Writes report, numbers and figures below `output/name`; the answers."""
    found, drifted, about = headlines(recipe, records), list(drifts(recipe, records)), machine()
    drawn = multi_figures.draw(recipe, records, drifted)
    said = list(answers(recipe, records, found, drifted))
    computed = {
        "headlines": [one.record() for one in found],
        "drift": [{**one._asdict(), "way": one.way.name} for one in drifted],
    }
    lines = _lines(recipe, records, said, drifted, about, drawn)
    publish(recipe, records, about, said, computed, lines)
    return said


def answers(
    recipe: MultiCandidateStudy,
    records: Records,
    found: Sequence[Headline],
    drifted: Sequence[Drift],
) -> Iterator[str]:
    """The questions, each answered in a line by the numbers."""
    for one in found:
        plain = ", itself a plain chain" if one.best.is_chain else ""
        yield (
            f"T={one.served:g}: {one.best.name}{plain} writes {_gain(one.over_baseline)} tokens a "
            f"second than {recipe.mcsd.name}, each held against plain decoding in its own turns "
            f"(the paper: at most {PUBLISHED_GAIN:.1%}, with a method that changes the text), and "
            f"{one.over_chain.times:.2f} times the best plain chain's, {one.chain.name}; the best "
            f"way to stop early, {one.early.one.name}, {one.early.times:.2f} times."
        )
        kinds = own_best(recipe, records, one.served)
        yield (
            f"T={one.served:g}: each kind's own best, side by side, in times of plain decoding: "
            f"{', '.join(f'{way.name} {speed:.2f}' for way, speed in kinds)}."
        )
        parts = "; ".join(_part(part) for part in one.parts)
        yield f"T={one.served:g}: each part by itself: {parts}."
        for whole, ranked in deciders(recipe, records, one.served).items():
            yield (
                f"T={one.served:g}: along {whole.name} a decision to stop makes it faster by "
                f"{', '.join(f'{_percent(d.times)} ({d.one.stop})' for d in ranked)}."
            )
    for one in drifted:
        if one.variation is not None:
            yield (
                f"{one.way.name}: total variation of three tokens {one.variation:.3f}, where an "
                f"exact rule shows {one.chance:.3f}{_greedy(one)}."
            )


def _greedy(one: Drift) -> str:
    if one.equal is None:
        return ""
    return f"; {one.equal:.0%} of greedy texts are plain decoding's"


def _percent(times: float) -> str:
    return f"{times - 1:+.1%}"


def _gain(factor: Factor) -> str:
    return f"{abs(factor.times - 1):.1%} {'more' if factor.times >= 1 else 'fewer'}"


def _part(part: Factor) -> str:
    return f"{part.what} {_percent(part.times)}"


def _lines(
    recipe: MultiCandidateStudy,
    records: Records,
    said: Sequence[str],
    drifted: Sequence[Drift],
    about: dict[str, Any],
    drawn: Sequence[tuple[str, str]],
) -> Iterator[str]:
    yield "# Many candidates, decided as they grow\n"
    yield (
        f"{recipe.target} and {recipe.draft}, {recipe.prompts} held-out prompts of {recipe.prompt} "
        f"tokens, {recipe.tokens} new ones, medians of {recipe.repetitions} interleaved "
        f"repetitions of each group, batch 1, {about['device']}, {about['cores']} cores, jax "
        f"{about['jax']}, float32. Ways are a rule, a tree, and what stops drafting early. The "
        "depth rate is guesses kept over the tree's depth, or over the depth drafted; where "
        "drafting stops early the second rises though nothing got faster. Ways named lossy change "
        "the text, and are here to be compared with; of theirs a guess is what stands below the "
        "target's own roots. What is fastest is chosen by the same prompts that it is timed on."
    )
    yield "\n## What was found\n"
    yield from (f"- {line}" for line in said)
    for file, title in drawn:
        yield f"\n![{title}]({file})"
    for group in (HEADLINE, *recipe.groups()):
        for served in recipe.served:
            yield f"\n## {group}, T={served:g}\n"
            yield from table(["way", *COLUMNS], _rows(records, group, served))
    yield "\n## Drift\n"
    nats = [f"nats a token, T={served:g} (plain)" for served in recipe.served]
    head = ["way", "greedy texts equal", "total variation (by chance)", *nats]
    yield from table(head, (_drift_row(one) for one in drifted))


def _rows(records: Records, group: str, served: float) -> Iterator[list[str]]:
    here = {
        (one.draft, one.measure): one.value
        for one in records.all
        if (one.domain, one.served) == (group, served)
    }
    for name in dict.fromkeys(name for name, _ in here):
        cells = [
            "" if (value := here.get((name, column))) is None
            else f"{value:.{DIGITS.get(column, 2)}f}"
            for column in COLUMNS
        ]  # fmt: skip
        yield [name if name != PLAIN else "plain decoding", *cells]


def _drift_row(one: Drift) -> list[str]:
    off = "" if one.variation is None else f"{one.variation:.3f} ({one.chance:.3f})"
    equal = "" if one.equal is None else f"{one.equal:.0%}"
    nats = [f"{written:.3f} ({plain:.3f})" for written, plain in one.nats.values()]
    return [one.way.name, equal, off, *nats]

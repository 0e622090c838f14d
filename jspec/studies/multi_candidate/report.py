"""What the multi-candidate study found, what a person reads of it, and its figures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from jspec.bench.plots import Figure, draw, label
from jspec.bench.timing import PLAIN
from jspec.studies.common.recipe import LOSSY, Experiment
from jspec.studies.common.records import Measure, Records
from jspec.studies.common.report import publish, table
from jspec.studies.multi_candidate.measure import DRIFT, EARLY, FASTEST, HEADLINE, headline, measure
from jspec.studies.multi_candidate.recipe import ON_CHAINS, STOPPING, Decoding, MultiCandidateStudy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What the paper says that it gains at most (abstract, versions 2 and 3).
PUBLISHED_GAIN = 0.275
# What a group's table says of each method, and with how many digits.
COLUMNS = {
    Measure.TOKENS_PER_SECOND: ("tokens per second", 0),
    Measure.TOKENS_PER_SECOND_SPREAD: ("half the range, tokens per second", 0),
    Measure.SPEEDUP: ("speed-up", 2),
    Measure.ACCEPTANCE_LENGTH: ("acceptance length", 2),
    Measure.ACCEPTANCE_RATE: ("acceptance rate, of the tree's depth", 2),
    Measure.ACCEPTANCE_RATE_DRAFTED: ("acceptance rate, of the depth drafted", 2),
    Measure.MAX_DRAFT_TOKENS: ("draft tokens of the tree", 0),
}


class Factor(NamedTuple):
    """How many times as fast one method is as another."""

    what: str
    one: Decoding
    other: Decoding
    times: float


@dataclass(frozen=True)
class Headline:
    """At a temperature the faster of the fastest tree and of the best method that stops early,
    which is `best`; what it gains over the baseline and over the best plain chain, what the `early`
    one gains over that chain, and what each part of it brings."""

    temperature: float
    best: Decoding
    chain: Decoding
    over_baseline: Factor
    over_chain: Factor
    early: Factor
    parts: tuple[Factor, ...]


class Drift(NamedTuple):
    """How far a method drifts: the share of texts that are plain decoding's at temperature 0, total
    variation of three tokens and what chance gives (None where it was not counted), and nats per
    token at each temperature, of its text and of plain decoding's."""

    method: Decoding
    identical_texts: float | None
    total_variation: float | None
    by_chance: float | None
    cross_entropies: dict[float, tuple[float, float]]


def write(recipe: MultiCandidateStudy, records: Records) -> list[str]:
    """Writes report, numbers and figures below `output/name`; the answers."""
    found, drifted = headlines(recipe, records), list(drifts(recipe, records))
    return publish(
        recipe,
        title="Many candidates, with decisions to stop",
        setting=_setting(recipe),
        findings=list(answers(recipe, records, found, drifted)),
        sections=_sections(recipe, records, drifted),
        computed={"headlines": found, "drift": drifted},
        records=records,
        figures=draw(_figures(recipe, records, drifted), recipe.folder),
    )


EXPERIMENT = Experiment(MultiCandidateStudy, measure, write)


def headlines(recipe: MultiCandidateStudy, records: Records) -> list[Headline]:
    """One for each temperature."""
    trees = fastest_trees(records)
    return [_headline(recipe, records, one, trees[one]) for one in recipe.temperatures]


def fastest_trees(records: Records) -> dict[float, str]:
    """What `tree=auto` took at each temperature."""
    found = [one for one in records.all if one.group == FASTEST]
    return {one.temperature: one.tree for one in found if one.temperature is not None}


def _headline(
    recipe: MultiCandidateStudy, records: Records, temperature: float, fastest: str
) -> Headline:
    methods = headline(recipe, records, temperature, fastest)

    def speedup(method: Decoding) -> float:
        return _speedup(records, method, HEADLINE, temperature)

    def factor(what: str, one: Decoding, other: Decoding) -> Factor:
        return Factor(what, one, other, speedup(one) / speedup(other))

    chain = max((one for one in methods if one.is_chain), key=speedup)
    tree = Decoding("coupled", fastest)
    early = max((one for one in methods if one.kind == EARLY and one.bucketed), key=speedup)
    best = max((tree, early), key=speedup)
    coupled, whole = Decoding("coupled", recipe.baseline), early._replace(stop="")
    unbucketed = early._replace(bucketed=False)
    return Headline(
        temperature,
        best,
        chain,
        factor("the exact improved method over the baseline", best, recipe.mcsd),
        factor("and over the best plain chain", best, chain),
        factor("the best method that stops early over the best plain chain", early, chain),
        (
            factor("coupling, on the baseline's tree", coupled, recipe.mcsd),
            factor("the tree's shape", tree, coupled),
            factor("that tree in the place of the baseline's", whole, coupled),
            factor("stopping early, on its own tree", unbucketed, whole),
            factor("verification buckets", early, unbucketed),
        ),
    )


def stopping(
    recipe: MultiCandidateStudy, records: Records, temperature: float
) -> dict[Decoding, list[Factor]]:
    """By rule and tree that are drafted to their end, what each stopping rule brings there at its
    best threshold, the best first."""
    found: dict[Decoding, dict[str, Factor]] = {}
    for group in STOPPING:
        for method in recipe.groups()[group]:
            if method.stop:
                whole = method._replace(stop="")
                name = method.stop.rpartition(":")[0] or method.stop
                ours, theirs = (
                    _speedup(records, one, group, temperature) for one in (method, whole)
                )
                one = Factor(name, method, whole, ours / theirs)
                here = found.setdefault(whole, {})
                here[name] = max(here.get(name, one), one, key=lambda factor: factor.times)
    return {
        whole: sorted(here.values(), key=lambda one: -one.times) for whole, here in found.items()
    }


def own_best(
    recipe: MultiCandidateStudy, records: Records, temperature: float
) -> list[tuple[Decoding, float]]:
    """Of every kind of methods that were timed side by side the fastest, with its speed-up, the
    fastest kind first."""
    found: dict[str, tuple[float, Decoding]] = {}
    fastest = fastest_trees(records)[temperature]
    for method in headline(recipe, records, temperature, fastest):
        if method.bucketed:
            speed = _speedup(records, method, HEADLINE, temperature)
            found[method.kind] = max(found.get(method.kind, (0.0, method)), (speed, method))
    return [(method, speed) for speed, method in sorted(found.values(), reverse=True)]


def drifts(recipe: MultiCandidateStudy, records: Records) -> Iterator[Drift]:
    """Of all methods that were looked at."""
    named = {one.name: one for group in recipe.groups().values() for one in group}
    named |= {one.name: one for one in (recipe.mcsd, Decoding("coupled", recipe.baseline))}
    here = [one for one in records.all if one.group == DRIFT]
    for name in dict.fromkeys(one.method for one in here):
        mine = {(x.measure, x.temperature): x.value for x in here if x.method == name}
        only = {measure: value for (measure, _), value in mine.items()}
        yield Drift(
            named[name],
            only.get(Measure.IDENTICAL_TEXTS),
            only.get(Measure.TOTAL_VARIATION),
            only.get(Measure.TOTAL_VARIATION_BY_CHANCE),
            {
                t: (mine[Measure.TEXT_CROSS_ENTROPY, t], mine[Measure.PLAIN_CROSS_ENTROPY, t])
                for t in recipe.temperatures
            },
        )


def _speedup(records: Records, method: Decoding, group: str, temperature: float) -> float:
    return records.value(Measure.SPEEDUP, method=method.name, group=group, temperature=temperature)


def answers(
    recipe: MultiCandidateStudy,
    records: Records,
    found: Sequence[Headline],
    drifted: Sequence[Drift],
) -> Iterator[str]:
    """The questions, each answered in a line by the numbers."""
    for one in found:
        here = f"T={one.temperature:g}"
        plain = ", itself a plain chain" if one.best.is_chain else ""
        yield (
            f"{here}: {one.best.name}{plain} generates {_gain(one.over_baseline)} tokens per "
            f"second than {recipe.mcsd.name}, each compared with plain decoding in its own turns "
            f"(the paper: at most {PUBLISHED_GAIN:.1%}, with a method that changes the text), and "
            f"{one.over_chain.times:.2f} times the best plain chain's, {one.chain.name}; the best "
            f"method that stops early, {one.early.one.name}, {one.early.times:.2f} times."
        )
        kinds = own_best(recipe, records, one.temperature)
        yield (
            f"{here}: each kind's own best, side by side, in times of plain decoding: "
            f"{', '.join(f'{method.name} {speed:.2f}' for method, speed in kinds)}."
        )
        parts = "; ".join(f"{part.what} {_percent(part.times)}" for part in one.parts)
        yield f"{here}: each part by itself: {parts}."
        for whole, ranked in stopping(recipe, records, one.temperature).items():
            yield (
                f"{here}: along {whole.name} a decision to stop makes it faster by "
                f"{', '.join(f'{_percent(x.times)} ({x.one.stop})' for x in ranked)}."
            )
    for one in drifted:
        if one.total_variation is not None:
            yield (
                f"{one.method.name}: total variation of three tokens {one.total_variation:.3f}, "
                f"where an exact rule shows {one.by_chance:.3f}{_greedy(one)}."
            )


def _greedy(one: Drift) -> str:
    if one.identical_texts is None:
        return ""
    return f"; {one.identical_texts:.0%} of greedy texts are plain decoding's"


def _percent(times: float) -> str:
    return f"{times - 1:+.1%}"


def _gain(factor: Factor) -> str:
    return f"{abs(factor.times - 1):.1%} {'more' if factor.times >= 1 else 'fewer'}"


def _setting(recipe: MultiCandidateStudy) -> str:
    return (
        f"{recipe.target} and {recipe.draft}, {recipe.prompts} held-out prompts of "
        f"{recipe.prompt_length} tokens, {recipe.max_new_tokens} new ones, medians of "
        f"{recipe.repetitions} interleaved repetitions of each group, batch 1, float32. A method "
        "is a rule, a tree, and what stops drafting early. The acceptance rate is accepted draft "
        "tokens over the tree's depth, or over the depth drafted; where drafting stops early the "
        "second rises though nothing got faster. Methods named lossy change the text, and are here "
        "to be compared with; their draft tokens are those below the target's own roots. What is "
        "fastest is chosen by the same prompts that it is timed on."
    )


def _sections(
    recipe: MultiCandidateStudy, records: Records, drifted: Sequence[Drift]
) -> Iterator[str]:
    for group in (HEADLINE, *recipe.groups()):
        for temperature in recipe.temperatures:
            yield f"\n## {group}, T={temperature:g}\n"
            head = ["method", *(name for name, _ in COLUMNS.values())]
            yield from table(head, _rows(records, group, temperature))
    yield "\n## Drift\n"
    nats = [f"nats per token, T={temperature:g} (plain)" for temperature in recipe.temperatures]
    head = ["method", "greedy texts identical", "total variation (by chance)", *nats]
    yield from table(head, (_drift_row(one) for one in drifted))


def _rows(records: Records, group: str, temperature: float) -> Iterator[list[str]]:
    here = {
        (one.method, one.measure): one.value
        for one in records.all
        if (one.group, one.temperature) == (group, temperature)
    }
    for name in dict.fromkeys(name for name, _ in here):
        cells = [
            "" if (value := here.get((name, measure))) is None else f"{value:.{digits}f}"
            for measure, (_, digits) in COLUMNS.items()
        ]
        yield [name if name != PLAIN else "plain decoding", *cells]


def _drift_row(one: Drift) -> list[str]:
    off = "" if one.by_chance is None else f"{one.total_variation:.3f} ({one.by_chance:.3f})"
    identical = "" if one.identical_texts is None else f"{one.identical_texts:.0%}"
    nats = [f"{ours:.3f} ({plain:.3f})" for ours, plain in one.cross_entropies.values()]
    return [one.method.name, identical, off, *nats]


def _figures(
    recipe: MultiCandidateStudy, records: Records, drifted: Sequence[Drift]
) -> list[Figure]:
    def chains(panels: Sequence["Axes"]) -> None:
        for temperature, axes in zip(recipe.temperatures, panels, strict=True):
            for rule in ON_CHAINS:
                methods = [Decoding(rule, f"chain:{depth}") for depth in recipe.depths]
                speeds = _of(records, Measure.SPEEDUP, "chains", temperature, methods)
                axes.plot(recipe.depths, speeds, marker=".", label=rule)
            axes.axhline(1, color="black", linewidth=0.8)
            label(axes, f"T={temperature:g}", "draft tokens per round", "speed-up")

    def forks(panels: Sequence["Axes"]) -> None:
        for temperature, axes in zip(recipe.temperatures, panels, strict=True):
            for rule, group in ((LOSSY, "published"), ("coupled", "forks")):
                methods = [Decoding(rule, f"fork:{w}x{recipe.fork}") for w in recipe.widths]
                lengths = _of(records, Measure.ACCEPTANCE_LENGTH, group, temperature, methods)
                axes.plot(recipe.widths, lengths, marker=".", label=rule)
            label(axes, f"T={temperature:g}", "chains of a fork", "acceptance length")

    def drift(panels: Sequence["Axes"]) -> None:
        counted = [
            (one.method.name, one.total_variation, one.by_chance, one.identical_texts)
            for one in drifted
            if one.total_variation is not None and one.identical_texts is not None
        ]
        names = [name for name, *_ in counted]
        panels[0].barh(names, [variation or 0 for _, variation, *_ in counted])
        for _, _, by_chance, _ in counted[:1]:
            panels[0].axvline(by_chance or 0, color="black", linewidth=0.8)
        panels[0].set_xlabel("total variation of three tokens, T=1; line: an exact rule")
        panels[1].barh(names, [identical or 0 for *_, identical in counted])
        panels[1].set_xlabel("greedy texts that are plain decoding's")
        for axes in panels:
            axes.invert_yaxis()
            axes.tick_params(labelsize="small")

    count = len(recipe.temperatures)
    title = "Forks: the published method, which changes the text, and exact ones"
    return [
        Figure("depth.png", "Speed of plain chains by their depth", chains, count),
        Figure("width.png", title, forks, count),
        Figure("drift.png", "The text drifts with the width", drift),
    ]


def _of(
    records: Records, measure: Measure, group: str, temperature: float, methods: Sequence[Decoding]
) -> list[float]:
    place = {"group": group, "temperature": temperature}
    return [records.value(measure, method=method.name, **place) for method in methods]

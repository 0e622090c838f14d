"""What the feature-draft study found, what a person reads of it, and its figures."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jspec.bench.plots import Figure, bars, draw, label, line
from jspec.bench.timing import PLAIN
from jspec.studies.common.measure import DOMAINS, IN_DOMAIN
from jspec.studies.common.recipe import Experiment, trained_rows
from jspec.studies.common.records import Mean, Measure, PairedDifference, Records
from jspec.studies.common.report import grid, listing, publish, signed, spread
from jspec.studies.feature_draft.measure import measure
from jspec.studies.feature_draft.recipe import EAGLE, FSPAD, PARTS, WIDE, FeatureDraftStudy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES = {
    EAGLE: "EAGLE",
    "sampling_alone": "EAGLE + feature sampling",
    "alignment_alone": "EAGLE + partial alignment",
    FSPAD: "FSPAD",
    WIDE: "EAGLE widened",
}
GAINS_OF: dict[str, str] = dict(
    zip(PARTS, ("feature sampling alone", "partial alignment alone", "parameters"), strict=True)
)


@dataclass(frozen=True)
class Entry:
    """A draft over a tree at a temperature, in domain: the acceptance length, mean over seeds, and
    what one of its kind was timed at."""

    draft: str
    tree: str
    temperature: float
    parameters: int
    acceptance_length: Mean
    draft_ms: float
    round_ms: float
    tokens_per_second: float
    speedup: float

    @property
    def name(self) -> str:
        """Of the draft, for people."""
        return NAMES.get(self.draft, self.draft)


@dataclass(frozen=True)
class Equals:
    """The head with the longest acceptance at a temperature, and the small model whose drafting
    takes nearest to as long."""

    head: Entry
    rival: Entry


@dataclass(frozen=True)
class Findings:
    """Answers, in acceptance lengths: `over_base` of each kind of head over EAGLE's, `over_wide` of
    FSPAD's over EAGLE's with as many parameters; `equals` in latency, of heads and small models;
    and the `ranking` of all."""

    over_base: tuple[PairedDifference, ...]
    over_wide: tuple[PairedDifference, ...]
    equals: tuple[Equals, ...]
    ranking: tuple[Entry, ...]


def write(recipe: FeatureDraftStudy, records: Records) -> list[str]:
    """Writes report, numbers and figures below `output/name`; the answers."""
    found = find(recipe, records)
    return publish(
        recipe,
        title="What feature sampling and partial alignment bring to EAGLE's head",
        setting=_setting(recipe),
        findings=list(answers(found)),
        sections=_sections(recipe, records, found),
        computed={
            "differences": found.over_base + found.over_wide,
            "equals": found.equals,
            "ranking": found.ranking,
        },
        records=records,
        figures=draw(_figures(recipe, records, found), recipe.folder),
    )


EXPERIMENT = Experiment(FeatureDraftStudy, measure, write)


def find(recipe: FeatureDraftStudy, records: Records) -> Findings:
    """All answers."""
    kinds = [kind for kind in recipe.kinds if kind != EAGLE]
    ranking = tuple(_ranking(recipe, records))
    return Findings(
        tuple(_differences(recipe, records, kinds, EAGLE)),
        tuple(_differences(recipe, records, [FSPAD], WIDE) if WIDE in kinds else ()),
        tuple(_equals(recipe, ranking)),
        ranking,
    )


def _differences(
    recipe: FeatureDraftStudy, records: Records, kinds: list[str], other: str
) -> Iterator[PairedDifference]:
    for domain in DOMAINS:
        for temperature, tree in _places(recipe):
            place = {"domain": domain, "temperature": temperature, "tree": tree}
            for kind in kinds:
                yield records.compare(Measure.ACCEPTANCE_LENGTH, kind, other, **place)


def _ranking(recipe: FeatureDraftStudy, records: Records) -> Iterator[Entry]:
    heads = [(kind, tree) for kind in recipe.kinds for tree in recipe.head_trees]
    rivals = [(draft, tree) for draft in recipe.drafts for tree in recipe.draft_trees]
    timed = Measure.DRAFT_MS, Measure.ROUND_MS, Measure.TOKENS_PER_SECOND, Measure.SPEEDUP
    for temperature in recipe.temperatures:
        for draft, tree in heads + rivals:
            place = {"domain": IN_DOMAIN, "temperature": temperature, "draft": draft, "tree": tree}
            size = int(records.value(Measure.PARAMETERS, draft=draft))
            length = records.mean(Measure.ACCEPTANCE_LENGTH, **place)
            numbers = [records.value(one, **place) for one in timed]
            yield Entry(draft, tree, temperature, size, length, *numbers)


def _equals(recipe: FeatureDraftStudy, ranking: tuple[Entry, ...]) -> Iterator[Equals]:
    for temperature in recipe.temperatures if recipe.drafts and recipe.draft_trees else ():
        here = [one for one in ranking if one.temperature == temperature]
        heads = [one for one in here if one.draft in recipe.kinds]
        best = max(heads, key=lambda one: one.acceptance_length.value)
        rivals = [one for one in here if one.draft in recipe.drafts]
        yield Equals(best, min(rivals, key=lambda one: abs(one.draft_ms - best.draft_ms)))


def answers(found: Findings) -> Iterator[str]:
    """The questions, each answered in a line by the numbers."""
    claims = [one for one in found.over_base if one.one == FSPAD]
    signs = [one.sign for one in claims]
    yield (
        f"FSPAD above EAGLE in acceptance length: found in {signs.count(1)} of {len(signs)} cells "
        f"of temperature, tree and domain, refuted in {signs.count(-1)}, not decided in "
        f"{signs.count(0)}."
    )
    for claim in (one for one in claims if one.domain == IN_DOMAIN):
        place = f"T={claim.temperature:g}, {claim.tree}"
        yield f"{place}: FSPAD above EAGLE: {_decision(claim)}."
        parts = [x for x in found.over_base if x.one in PARTS and _place(x) == _place(claim)]
        if parts:
            yield f"{place}: over EAGLE, {'; '.join(_share(one, claim) for one in parts)}."
        for rest in (one for one in found.over_wide if _place(one) == _place(claim)):
            yield f"{place}: FSPAD above EAGLE of as many parameters: {_decision(rest)}."
    for one in found.equals:
        yield (
            f"T={one.head.temperature:g}: of the heads {_described(one.head)}; of the small "
            f"models, nearest to that latency, {_described(one.rival)}."
        )


def _decision(one: PairedDifference) -> str:
    decision = {1: "found", 0: "not decided", -1: "refuted"}[one.sign]
    return f"{decision}, {signed(one.difference, 3)}"


def _share(part: PairedDifference, whole: PairedDifference) -> str:
    """What a part brings and, of a gain that there is, its share."""
    said = f"{GAINS_OF[part.one]} {signed(part.difference, 3)}"
    if whole.sign < 1:
        return said
    return f"{said} ({part.difference.value / whole.difference.value:.0%} of FSPAD's gain)"


def _described(one: Entry) -> str:
    return (
        f"{one.name} on {one.tree} drafts for {one.draft_ms:.2f} ms per round, has an acceptance "
        f"length of {spread(one.acceptance_length, 2)} and generates {one.tokens_per_second:.0f} "
        f"tokens per second ({one.speedup:.2f} of plain decoding)"
    )


def _place(one: PairedDifference) -> tuple[str, float, str]:
    return one.domain, one.temperature, one.tree


def _setting(recipe: FeatureDraftStudy) -> str:
    training, head = recipe.training, recipe.head
    return (
        f"Target `{training.target}`. Every head is trained {trained_rows(training)}: the corpus "
        f"by {training.text.weight:g}, {training.teacher_data.count} texts of the target "
        f"by {training.teacher_data.weight:g}, the same rows in the same order for all kinds of a "
        f"seed. Losses: {head.feature_weight:g} of the feature, {head.logits_weight:g} of the "
        f"distribution; noise {head.feature_noise:g}; training-time test steps: {head.ttt_steps}. "
        f"{recipe.seeds} seeds. `{WIDE}` has EAGLE's shape and, by a wider feed-forward, FSPAD's "
        "parameters. Coupled verification. "
        f"Measured on {recipe.prompts} prompts of each domain, {recipe.max_new_tokens} new tokens, "
        "the same for all; ± is Student's 95% interval over seeds, and does not cover other texts. "
        "The small models were trained elsewhere, and longer or shorter: they are here for their "
        "latency."
    )


def _sections(recipe: FeatureDraftStudy, records: Records, found: Findings) -> Iterator[str]:
    both = all(tree in recipe.draft_trees for tree in recipe.head_trees)
    gains = {(one.one, *_place(one)): one.difference for one in found.over_base}
    for domain in DOMAINS:
        yield f"\n## Acceptance length, {domain}\n"
        yield from _grid(
            recipe,
            (*recipe.kinds, *(recipe.drafts if both else ())),
            lambda draft, place, domain=domain: spread(_length(records, draft, domain, place), 2),
        )
    for domain in DOMAINS:
        yield f"\n## Acceptance length over EAGLE's, seed by seed, {domain}\n"
        yield from _grid(
            recipe,
            [kind for kind in recipe.kinds if kind != EAGLE],
            lambda kind, place, domain=domain: signed(gains[kind, domain, *place], 3),
        )
    columns: dict[str, Callable[[Entry], str]] = {
        "draft": lambda one: one.name,
        "tree": lambda one: one.tree,
        "parameters": lambda one: f"{one.parameters:,}",
        "ms per round, the draft": lambda one: f"{one.draft_ms:.2f}",
        "ms per round": lambda one: f"{one.round_ms:.2f}",
        "acceptance length": lambda one: spread(one.acceptance_length, 2),
        "tokens per second": lambda one: f"{one.tokens_per_second:.0f}",
        "speed-up": lambda one: f"{one.speedup:.2f}",
    }
    for temperature in recipe.temperatures:
        plain = records.value(Measure.TOKENS_PER_SECOND, draft=PLAIN, temperature=temperature)
        yield f"\n## Latency and speed at T={temperature:g}, by what the draft takes\n"
        yield (
            f"One head of each kind, seed 0, and small models, a prompt at a time; plain decoding "
            f"generates {plain:.0f} tokens per second. The parameters of small models are all of "
            "theirs; heads use the target's embedding.\n"
        )
        here = [one for one in found.ranking if one.temperature == temperature]
        yield from listing(columns, sorted(here, key=lambda one: one.draft_ms))
    for domain in DOMAINS:
        for tree in recipe.head_trees:
            levels = {f"position {one}": one for one in positions(records, tree)}
            for temperature in recipe.temperatures:
                place = {"domain": domain, "temperature": temperature, "tree": tree}
                yield f"\n## Accepted by position, {domain}, T={temperature:g}, {tree}\n"
                yield from grid(
                    {NAMES[kind]: kind for kind in recipe.kinds},
                    levels,
                    lambda kind, at, place=place: spread(_accepted(records, kind, at, **place)),
                )


def positions(records: Records, tree: str) -> list[int]:
    """At which draft tokens of a tree may stand."""
    accepted = Measure.ACCEPTED_BY_POSITION, tree
    found = {one.position for one in records.all if (one.measure, one.tree) == accepted}
    return sorted(filter(None, found))


def _length(records: Records, draft: str, domain: str, place: tuple[float, str]) -> Mean:
    where = {"domain": domain, "temperature": place[0], "tree": place[1]}
    return records.mean(Measure.ACCEPTANCE_LENGTH, draft=draft, **where)


def _accepted(records: Records, draft: str, position: int, **place: object) -> Mean:
    return records.mean(Measure.ACCEPTED_BY_POSITION, draft=draft, position=position, **place)


def _places(recipe: FeatureDraftStudy) -> list[tuple[float, str]]:
    """Temperatures and the two trees of the heads."""
    return [(t, tree) for t in recipe.temperatures for tree in recipe.head_trees]


def _grid(
    recipe: FeatureDraftStudy, drafts: Iterable[str], cell: Callable[[str, tuple[float, str]], str]
) -> Iterator[str]:
    columns = {f"T={place[0]:g}, {place[1]}": place for place in _places(recipe)}
    yield from grid({NAMES.get(draft, draft): draft for draft in drafts}, columns, cell)


def _figures(recipe: FeatureDraftStudy, records: Records, found: Findings) -> list[Figure]:
    over = {(one.one, *_place(one)): one.difference for one in found.over_base}
    groups = [f"T={temperature:g}\n{tree}" for temperature, tree in _places(recipe)]

    def bar_groups(
        panels: Sequence["Axes"], first: int, up: str, mean: Callable[..., Mean]
    ) -> None:
        for domain, axes in zip(DOMAINS, panels, strict=True):
            series = {
                NAMES[kind]: [mean(kind, domain, place) for place in _places(recipe)]
                for kind in recipe.kinds
                if kind != EAGLE or not first
            }
            bars(axes, groups, series, first=first)
            axes.set_title(domain, fontsize="small")
            axes.set_ylabel(up)

    def rounds(panels: Sequence["Axes"]) -> None:
        bar_groups(panels, 0, "acceptance length", lambda *one: _length(records, *one))
        for axes in panels:
            axes.set_ylim(bottom=1)

    def gains(panels: Sequence["Axes"]) -> None:
        up = "acceptance length over EAGLE's, seed by seed"
        bar_groups(panels, 1, up, lambda kind, domain, place: over[kind, domain, *place])
        for axes in panels:
            axes.axhline(0, color="black", linewidth=0.8)

    def depth(panels: Sequence["Axes"]) -> None:
        for temperature, axes in zip(recipe.temperatures, panels, strict=True):
            for tree, style in zip(recipe.head_trees, (":", "-"), strict=True):
                place = {"domain": IN_DOMAIN, "temperature": temperature, "tree": tree}
                levels = positions(records, tree)
                for number, kind in enumerate(recipe.kinds):
                    means = [_accepted(records, kind, one, **place) for one in levels]
                    how = {"color": f"C{number}", "label": NAMES[kind] if style == "-" else None}
                    line(axes, levels, means, linestyle=style, **how)
                axes.set_xticks(levels)
            title = f"T={temperature:g}; solid: {recipe.dynamic_tree}, dotted: {recipe.tree}"
            across = "position; below 1 the head reads drafted features"
            label(axes, title, across, "share of rounds")
            axes.set_ylim(bottom=0)

    def latency(panels: Sequence["Axes"]) -> None:
        for temperature, axes in zip(recipe.temperatures, panels, strict=True):
            here = [one for one in found.ranking if one.temperature == temperature]
            _paint_latency(axes, recipe, here)
            title = (
                f"T={temperature:g}; heads: round {recipe.tree}, triangle {recipe.dynamic_tree}; "
                "square: models"
            )
            label(axes, title, "milliseconds per round that the draft takes", "acceptance length")

    count = len(recipe.temperatures)
    return [
        Figure("rounds.png", "Acceptance length by kind of head; 95% intervals over seeds", rounds),
        Figure("gains.png", "What each change brings; 95% intervals over seeds", gains),
        Figure("depth.png", "Accepted by position, in domain", depth, count),
        Figure("latency.png", "What a draft takes and what it brings, in domain", latency, count),
    ]


def _paint_latency(axes: "Axes", recipe: FeatureDraftStudy, entries: Sequence[Entry]) -> None:
    marks = {recipe.tree: "o", recipe.dynamic_tree: "^"}
    for number, draft in enumerate((*recipe.kinds, *recipe.drafts)):
        name: str | None = NAMES.get(draft, draft)
        for one in (one for one in entries if one.draft == draft):
            at = one.draft_ms, one.acceptance_length.value
            mark = marks[one.tree] if draft in recipe.kinds else "s"
            axes.scatter(*at, color=f"C{number}", marker=mark, label=name)
            name = None
            if mark == "s":
                how = {"xytext": (4, 4), "textcoords": "offset points", "fontsize": "xx-small"}
                axes.annotate(one.tree, at, **how)

"""What the temperature study found, what a person reads of it, and its figures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jspec.bench.plots import Figure, draw, label, line
from jspec.bench.timing import PLAIN
from jspec.studies.common.measure import DOMAINS, IN_DOMAIN
from jspec.studies.common.recipe import COUPLED, Experiment, trained_rows
from jspec.studies.common.records import Mean, Measure, PairedDifference, Records
from jspec.studies.common.report import by_temperature, grid, listing, publish, signed, spread
from jspec.studies.temperature.measure import NODE_RULES, UNTRAINED, measure, methods
from jspec.studies.temperature.recipe import TemperatureStudy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Where = Mapping[str, Any]

HOT = 1.5  # from which on the third question asks
OVERLAP: Where = {"measure": Measure.OVERLAP}
NODE = {"measure": Measure.NODE_ACCEPTANCE}
# Acceptance at one node, by the rule's name for people.
AT_NODE: dict[str, Where] = {
    "overlap (one candidate)": OVERLAP,
    "top-k": {**NODE, "rule": NODE_RULES[0]},
    "recursive rejection": {**NODE, "rule": NODE_RULES[1]},
    "coupled": {**NODE, "rule": NODE_RULES[2]},
}


@dataclass(frozen=True)
class Fall:
    """The acceptance of a kind of draft at the first temperature, at its lowest, and at the last;
    `lowest` is the temperature of that."""

    draft: str
    rule: str
    first: float
    least: float
    lowest: float
    last: float


class Best(NamedTuple):
    """A draft's overlap in domain at the target's temperature, and at the best of all that were
    tried for the draft alone, which needs no training."""

    as_served: Mean
    best: Mean
    draft_temperature: float


@dataclass(frozen=True)
class Control:
    """Two kinds of drafts at their best, and how much better than that the matched one is."""

    temperature: float
    untrained: Best
    reference: Best
    matched: Mean | None
    over_reference: Mean | None


@dataclass(frozen=True)
class Findings:
    """Answers, in the order of the questions."""

    falls: tuple[Fall, ...]
    matched: tuple[PairedDifference, ...]
    controls: tuple[Control, ...]
    rules: tuple[PairedDifference, ...]


def write(recipe: TemperatureStudy, records: Records) -> list[str]:
    """Writes report, numbers and figures below `output/name`; the answers."""
    found = find(recipe, records)
    return publish(
        recipe,
        title="Trained at one temperature, served at another",
        setting=_setting(recipe),
        findings=list(answers(recipe, found)),
        sections=_sections(recipe, records, found),
        computed={"differences": found.matched + found.rules, "controls": found.controls},
        records=records,
        figures=draw(_figures(recipe, records), recipe.folder),
    )


EXPERIMENT = Experiment(TemperatureStudy, measure, write)


def find(recipe: TemperatureStudy, records: Records) -> Findings:
    """All answers."""
    return Findings(
        tuple(_falls(recipe, records)),
        tuple(_matched(recipe, records)),
        tuple(_control(recipe, records, t) for t in recipe.temperatures if t),
        tuple(
            records.compare(
                Measure.NODE_ACCEPTANCE, COUPLED, rule, field="rule",
                domain=domain, temperature=temperature, draft=recipe.reference,
            )
            for domain in DOMAINS
            for temperature in recipe.temperatures
            for rule in NODE_RULES
            if rule != COUPLED
        ),
    )  # fmt: skip


def _falls(recipe: TemperatureStudy, records: Records) -> Iterator[Fall]:
    for draft in (UNTRAINED, recipe.reference):
        for rule, where in AT_NODE.items():
            found = {
                t: records.value(draft=draft, domain=IN_DOMAIN, temperature=t, **where)
                for t in recipe.temperatures
            }
            lowest = min(sorted(found), key=found.__getitem__)
            first, last = found[min(found)], found[max(found)]
            yield Fall(draft, rule, first, found[lowest], lowest, last)


def _matched(recipe: TemperatureStudy, records: Records) -> Iterator[PairedDifference]:
    """The matched draft against those of T = 1, of T = 0, of ranges and sets, and the untrained."""
    several = [t for t in recipe.train_temperatures if "," in t or ".." in t]
    rivals = dict.fromkeys((recipe.reference, recipe.matched(0.0), *several, UNTRAINED))
    for domain in DOMAINS:
        for temperature in recipe.temperatures:
            ours = recipe.matched(temperature)
            for rival in rivals:
                if ours and rival and rival != ours:
                    for where in (OVERLAP, _decoded(recipe)):
                        place = {"domain": domain, "temperature": temperature, **where}
                        yield records.compare(one=ours, other=rival, **place)


def _control(recipe: TemperatureStudy, records: Records, temperature: float) -> Control:
    here = {"domain": IN_DOMAIN, "temperature": temperature}

    def best(draft: str) -> Best:
        found = {
            own: records.mean(Measure.OVERLAP, draft=draft, draft_temperature=own, **here)
            for own in recipe.draft_temperatures
        }
        own = max(found, key=lambda one: found[one].value)
        return Best(records.mean(Measure.OVERLAP, draft=draft, **here), found[own], own)

    reference, ours, over = best(recipe.reference), recipe.matched(temperature), None
    if ours:
        rival = {"draft": recipe.reference, "draft_temperature": reference.draft_temperature}
        over = records.difference(Measure.OVERLAP, {"draft": ours}, rival, **here)
    matched = records.mean(Measure.OVERLAP, draft=ours, **here) if ours else None
    return Control(temperature, best(UNTRAINED), reference, matched, over)


def _decoded(recipe: TemperatureStudy) -> Where:
    """The fields that find what was decoded along the recipe's tree."""
    return {"measure": Measure.ACCEPTANCE_LENGTH, "rule": COUPLED, "tree": recipe.tree}


def answers(recipe: TemperatureStudy, found: Findings) -> Iterator[str]:
    """The three questions, each answered in a line or two by the numbers."""
    coldest, hottest = min(recipe.temperatures), max(recipe.temperatures)
    for fall in found.falls:
        yield (
            f"{fall.rule}, {_name(fall.draft)}: {fall.first:.3f} at T={coldest:g}, least at "
            f"T={fall.lowest:g} with {fall.least:.3f} ({fall.least - fall.first:+.3f}), "
            f"{fall.last:.3f} at T={hottest:g}."
        )
    overlaps = [one for one in found.matched if one.measure == Measure.OVERLAP]
    for other in dict.fromkeys(one.other for one in overlaps):
        for domain in DOMAINS:
            if here := [one for one in overlaps if (one.other, one.domain) == (other, domain)]:
                yield f"Matched against {_name(other)}, {domain}: {_count(here)}."
    for control in found.controls:
        if control.over_reference is not None:
            yield (
                f"At T={control.temperature:g} the matched draft's overlap is "
                f"{signed(control.over_reference)} over that of the draft trained at "
                f"{recipe.reference}, sampled at the best temperature for it, "
                f"{control.reference.draft_temperature:g}."
            )
    hot = [x for x in found.rules if x.domain == IN_DOMAIN and x.temperature >= HOT]
    for one in sorted(hot, key=lambda one: NODE_RULES.index(one.other)):
        yield (
            f"Coupled against {one.other} at T={one.temperature:g}, {recipe.width} candidates: "
            f"{signed(one.difference)}."
        )


def _count(found: Sequence[PairedDifference]) -> str:
    signs = [one.sign for one in found]
    each = ", ".join(f"T={one.temperature:g} {signed(one.difference)}" for one in found)
    return (
        f"better in {signs.count(1)} of {len(signs)} cells, worse in {signs.count(-1)}, undecided "
        f"in {signs.count(0)} ({each})"
    )


def _setting(recipe: TemperatureStudy) -> str:
    training = recipe.training
    return (
        f"Target `{training.target}`, draft `{training.draft or 'fresh'}`. Every draft is trained "
        f"{trained_rows(training)} that hold {training.teacher_data.count} texts of the target, of "
        f"up to {training.teacher_data.max_new_tokens} tokens, and their prompts; {recipe.seeds} "
        "seeds, each with prompts, texts and an order of its own. The temperature of these texts "
        "and of the loss is tied, and is the row; both models are sampled at the column's. "
        f"Measured on {recipe.prompts} prompts of each domain, {recipe.max_new_tokens} new tokens, "
        "the same for all; ± is Student's 95% interval over seeds, and does not cover other texts. "
        "Losses carry no factor of T²."
    )


def _sections(recipe: TemperatureStudy, records: Records, found: Findings) -> Iterator[str]:
    kinds = [UNTRAINED, *recipe.train_temperatures]

    def means(rows: Mapping[str, Where], digits: int, **here: Any) -> Iterator[str]:
        def cell(where: Where, temperature: float) -> str:
            return spread(records.mean(temperature=temperature, **where, **here), digits)

        return grid(rows, by_temperature(recipe.temperatures), cell)

    def of_kinds(where: Where) -> dict[str, Where]:
        return {_name(kind): {"draft": kind, **where} for kind in kinds}

    def speed(kind: str, temperature: float) -> str:
        here = {"draft": kind, "domain": IN_DOMAIN, "temperature": temperature}
        rate = records.value(Measure.TOKENS_PER_SECOND, **here)
        return f"{rate:.0f} ({records.value(Measure.SPEEDUP, **here):.2f})"

    for domain in DOMAINS:
        yield f"\n## Overlap, {domain}: what token-level rejection accepts of one draft token\n"
        yield from means(of_kinds(OVERLAP), 3, domain=domain)
    for domain in DOMAINS:
        yield f"\n## Acceptance length, {domain}: coupled, `{recipe.tree}`, by decoding\n"
        yield from means(of_kinds(_decoded(recipe)), 2, domain=domain)
    yield "\n## Tokens per second, seed 0, and speed-up at the same temperature\n"
    named = {_name(kind): kind for kind in (PLAIN, *kinds)}
    yield from grid(named, by_temperature(recipe.temperatures), speed)
    for kind in (UNTRAINED, recipe.reference):
        yield f"\n## Rules side by side, draft {_name(kind)}: one node, {recipe.width} candidates\n"
        yield from means(AT_NODE, 3, draft=kind, domain=IN_DOMAIN)
        yield f"\nAcceptance length by decoding, {recipe.width} candidates a round:\n"
        yield from means(_by_decoding(recipe), 2, draft=kind, domain=IN_DOMAIN)
    yield "\n## The free control: the draft sampled at another temperature\n"
    yield "Overlap, in domain, at the target's temperature and at the draft's own best.\n"
    trained = _name(recipe.reference)
    columns: dict[str, Callable[[Control], str]] = {
        "served at": lambda one: f"{one.temperature:g}",
        "untrained": lambda one: spread(one.untrained.as_served),
        "untrained, best": lambda one: _best(one.untrained),
        trained: lambda one: spread(one.reference.as_served),
        f"{trained}, best": lambda one: _best(one.reference),
        "matched": lambda one: spread(one.matched),
        "over that best": lambda one: signed(one.over_reference),
    }
    yield from listing(columns, found.controls)
    yield "\n## The diagonal: matched drafts against others, seed by seed\n"
    pairs: dict[str, Callable[[PairedDifference], str]] = {
        "domain": lambda one: one.domain,
        "served at": lambda one: f"{one.temperature:g}",
        "measure": lambda one: one.measure,
        "against": lambda one: _name(one.other),
        "matched is better by": lambda one: signed(one.difference),
        "": lambda one: {1: "better", 0: "undecided", -1: "worse"}[one.sign],
    }
    yield from listing(pairs, found.matched)


def _best(one: Best) -> str:
    return f"{spread(one.best)} at {one.draft_temperature:g}"


def _by_decoding(recipe: TemperatureStudy) -> dict[str, Where]:
    return {
        name: {"measure": Measure.ACCEPTANCE_LENGTH, "rule": rule, "tree": tree}
        for name, (rule, tree) in methods(recipe.width).items()
    }


def _name(kind: str) -> str:
    """A kind of draft as a reader knows it."""
    return f"trained at {kind}" if kind[:1].isdigit() or kind[:1] == "." else kind


def _figures(recipe: TemperatureStudy, records: Records) -> list[Figure]:
    trained = recipe.train_temperatures
    kinds = [UNTRAINED, *trained]

    def values(kinds: Sequence[str], domain: str, where: Where) -> np.ndarray:
        places = [[(kind, t) for t in recipe.temperatures] for kind in kinds]
        value = records.value
        return np.array(
            [[value(draft=k, domain=domain, temperature=t, **where) for k, t in x] for x in places]
        )

    def overlap(panels: Sequence["Axes"]) -> None:
        for domain, axes in zip(DOMAINS, panels, strict=True):
            found = values(kinds, domain, OVERLAP)
            _heat(axes, recipe, kinds, found, f"sum of min(p, q), {domain}", "{:.3f}")

    def gain(panels: Sequence["Axes"]) -> None:
        for domain, axes in zip(DOMAINS, panels, strict=True):
            found = values(trained, domain, OVERLAP) - values([UNTRAINED], domain, OVERLAP)
            title = f"gain in sum of min(p, q), {domain}"
            _heat(axes, recipe, trained, found, title, "{:+.3f}", around_zero=True)

    def rounds(panels: Sequence["Axes"]) -> None:
        for axes, where, title, text in (
            (panels[0], _decoded(recipe), f"acceptance length, coupled {recipe.tree}", "{:.2f}"),
            (panels[1], {"measure": Measure.SPEEDUP}, "speed-up at the same T (seed 0)", "{:.2f}x"),
        ):
            found = values(kinds, IN_DOMAIN, where)
            _heat(axes, recipe, kinds, found, f"{title}, {IN_DOMAIN}", text)

    def rules(panels: Sequence["Axes"]) -> None:
        titles = f"accepted at one node, {recipe.width} candidates", "acceptance length by decoding"
        for axes, places, title in zip(
            panels, (AT_NODE, _by_decoding(recipe)), titles, strict=True
        ):
            for number, (name, where) in enumerate(places.items()):
                for kind, style in ((recipe.reference, "-"), (UNTRAINED, ":")):
                    means = [
                        records.mean(draft=kind, domain=IN_DOMAIN, temperature=t, **where)
                        for t in recipe.temperatures
                    ]
                    how = {"color": f"C{number}", "label": name if style == "-" else None}
                    line(axes, recipe.temperatures, means, linestyle=style, **how)
            lines = f"solid: trained at {recipe.reference}, dotted: untrained"
            label(axes, f"{title}; {lines}", "temperature of target and draft", "")
            axes.set_ylim(bottom=0)

    def control(panels: Sequence["Axes"]) -> None:
        own = sorted(recipe.draft_temperatures)
        for kind, axes in zip((UNTRAINED, recipe.reference), panels, strict=True):
            for number, temperature in enumerate(t for t in recipe.temperatures if t):
                here = {"draft": kind, "domain": IN_DOMAIN, "temperature": temperature}
                found = [records.value(Measure.OVERLAP, draft_temperature=t, **here) for t in own]
                color = f"C{number}"
                axes.plot(own, found, color=color, marker=".", label=f"served at {temperature:g}")
                as_served = records.value(Measure.OVERLAP, **here)
                axes.plot([temperature], [as_served], color=color, marker="o", markersize=9)
            title = f"draft {_name(kind)}; the ring: draft and target at one temperature"
            label(axes, title, "temperature of the draft alone", "sum of min(p, q)")

    return [
        Figure("overlap.png", "Acceptance of one draft token, trained against served", overlap),
        Figure("gain.png", "What training gains over the untrained draft", gain),
        Figure("rounds.png", "Acceptance length and speed, trained against served", rounds),
        Figure("rules.png", "Rules at equal nodes, by temperature", rules),
        Figure("control.png", "The draft sampled at another temperature", control),
    ]


def _heat(
    axes: "Axes",
    recipe: TemperatureStudy,
    kinds: Sequence[str],
    values: np.ndarray,
    title: str,
    text: str,
    *,
    around_zero: bool = False,
) -> None:
    """A cell for every kind of draft and temperature, its number inside; where the two temperatures
    are one, framed."""
    from matplotlib.patches import Rectangle

    most = float(np.abs(values).max()) or 1.0
    ends: dict[str, Any] = {"vmin": -most, "vmax": most} if around_zero else {}
    colours = "RdBu" if around_zero else "viridis"
    image = axes.imshow(values, cmap=colours, aspect="auto", **ends)
    frame = {"fill": False, "edgecolor": "red", "linewidth": 2}
    centre: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": "small"}
    for (row, column), value in np.ndenumerate(values):
        share = float(np.asarray(image.norm(value)))
        pale = abs(share - 0.5) < 0.3 if around_zero else share > 0.6
        color = "black" if pale else "white"
        axes.text(column, row, text.format(value), color=color, **centre)
        if kinds[row] == recipe.matched(recipe.temperatures[column]):
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **frame))
    axes.set_xticks(range(len(recipe.temperatures)), [f"{t:g}" for t in recipe.temperatures])
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_xlabel("served at (target and draft)")
    axes.set_ylabel("trained at (answers and loss)")
    axes.set_title(f"{title}; framed: matched", fontsize="small")

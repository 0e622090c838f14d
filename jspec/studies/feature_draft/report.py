"""What the feature-draft study found, what a person reads of it, and its figures."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from jspec.bench.plots import Figure, bars, label, line
from jspec.bench.timing import PLAIN
from jspec.studies.common.measure import DOMAINS, IN_DOMAIN
from jspec.studies.common.recipe import Experiment, measured_on, trained_rows
from jspec.studies.common.records import Mean, Measure, PairedDifference, Places, Records, Where
from jspec.studies.common.report import Report, grid, listing, panels
from jspec.studies.feature_draft.measure import TIMED, measure
from jspec.studies.feature_draft.recipe import EAGLE, FSPAD, WIDE, FeatureDraftStudy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES = {
    EAGLE: "EAGLE",
    "sampling_alone": "EAGLE + feature sampling",
    "alignment_alone": "EAGLE + partial alignment",
    FSPAD: "FSPAD",
    WIDE: "EAGLE widened",
}
# What brings the gain of a head that is not all of FSPAD.
PARTS = {
    "sampling_alone": "feature sampling alone",
    "alignment_alone": "partial alignment alone",
    WIDE: "parameters",
}
DECISIONS = {1: "found", 0: "not decided", -1: "refuted"}
LENGTH: Where = {"measure": Measure.ACCEPTANCE_LENGTH}
ACCEPTED: Where = {"measure": Measure.ACCEPTED_BY_POSITION}
OVER_EAGLE: dict[str, Any] = {"over": {"draft": EAGLE}, **LENGTH}
Entry = dict[str, Any]


class FeatureDraftReport(Report[FeatureDraftStudy, Records]):
    """Acceptance lengths of heads that differ in a change or two."""

    title = "What feature sampling and partial alignment bring to EAGLE's head"

    def __init__(self, recipe: FeatureDraftStudy, found: Records) -> None:
        super().__init__(recipe, found)
        self.heads: Places = {NAMES[kind]: {"draft": kind} for kind in recipe.kinds}
        self.changed: Places = {NAMES[x]: {"draft": x} for x in recipe.kinds if x != EAGLE}
        self.places: Places = {
            f"T={temperature:g}, {tree}": {"temperature": temperature, "tree": tree}
            for temperature in recipe.temperatures
            for tree in recipe.head_trees
        }

    @functools.cached_property
    def over_base(self) -> list[PairedDifference]:
        """Every kind of head over EAGLE's."""
        return self._over(EAGLE, [kind for kind in self.recipe.kinds if kind != EAGLE])

    @functools.cached_property
    def over_wide(self) -> list[PairedDifference]:
        """FSPAD over EAGLE with as many parameters."""
        return self._over(WIDE, [FSPAD] if WIDE in self.recipe.kinds else [])

    def _over(self, other: str, kinds: Sequence[str]) -> list[PairedDifference]:
        return [
            self.found.compare(one=kind, other=other, domain=domain, **place, **LENGTH)
            for domain in DOMAINS
            for place in self.places.values()
            for kind in kinds
        ]

    @functools.cached_property
    def ranking(self) -> list[Entry]:
        """All heads and small models in domain: the acceptance length, mean over seeds, and what
        one of each kind was timed at."""
        recipe, entries = self.recipe, []
        drafts = [(x, y) for x in (*recipe.kinds, *recipe.drafts) for y in recipe.trees_of(x)]
        for temperature in recipe.temperatures:
            for draft, tree in drafts:
                entry = {"draft": draft, "tree": tree, "temperature": temperature}
                place = {"domain": IN_DOMAIN, **entry}
                size = self.found.value(Measure.PARAMETERS, draft=draft)
                length = self.found.mean(**place, **LENGTH)
                entry |= {"parameters": int(size), "acceptance_length": length}
                entry |= {one.value: self.found.value(one, **place) for one in TIMED}
                entries.append(entry)
        return entries

    @functools.cached_property
    def equals(self) -> list[dict[str, Entry]]:
        """At each temperature the head with the longest acceptance, and the small model whose
        drafting takes nearest to as long."""
        recipe, found = self.recipe, []
        for temperature in recipe.temperatures if recipe.drafts and recipe.draft_trees else ():
            here = [one for one in self.ranking if one["temperature"] == temperature]
            heads = [one for one in here if one["draft"] in recipe.kinds]
            head = max(heads, key=lambda one: one["acceptance_length"].value)
            rivals = [one for one in here if one["draft"] in recipe.drafts]
            off = [abs(one["draft_ms"] - head["draft_ms"]) for one in rivals]
            found.append({"head": head, "rival": rivals[off.index(min(off))]})
        return found

    def _positions(self, tree: str) -> Places:
        """At which draft tokens of a tree may stand."""
        accepted = Measure.ACCEPTED_BY_POSITION, tree
        found = {one.position for one in self.found.all if (one.measure, one.tree) == accepted}
        return {f"position {one}": {"position": one} for one in sorted(filter(None, found))}

    def _computed(self) -> dict[str, Any]:
        differences = self.over_base + self.over_wide
        return {"differences": differences, "equals": self.equals, "ranking": self.ranking}

    def answers(self) -> Iterator[str]:
        """As `Report.answers`."""
        claims = [one for one in self.over_base if one.one == FSPAD]
        signs = [one.difference.sign for one in claims]
        yield (
            f"FSPAD above EAGLE in acceptance length: found in {signs.count(1)} of {len(signs)} "
            f"cells of temperature, tree and domain, refuted in {signs.count(-1)}, not decided in "
            f"{signs.count(0)}."
        )
        for claim in (one for one in claims if one.domain == IN_DOMAIN):
            place, whole = f"T={claim.temperature:g}, {claim.tree}", claim.difference
            yield f"{place}: FSPAD above EAGLE: {DECISIONS[whole.sign]}, {whole:+.3f}."
            parts = []
            for part in self.over_base:
                if part.one in PARTS and part.cell == claim.cell:
                    brought, share = part.difference, ""
                    if whole.sign == 1:
                        share = f" ({brought.value / whole.value:.0%} of FSPAD's gain)"
                    parts.append(f"{PARTS[part.one]} {brought:+.3f}{share}")
            if parts:
                yield f"{place}: over EAGLE, {'; '.join(parts)}."
            for rest in (one.difference for one in self.over_wide if one.cell == claim.cell):
                decision = f"{DECISIONS[rest.sign]}, {rest:+.3f}"
                yield f"{place}: FSPAD above EAGLE of as many parameters: {decision}."
        for pair in self.equals:
            head, rival = (_described(**one) for one in pair.values())
            yield (
                f"T={pair['head']['temperature']:g}: of the heads {head}; of the small models, "
                f"nearest to that latency, {rival}."
            )

    def _setting(self) -> str:
        recipe, training, head = self.recipe, self.recipe.training, self.recipe.head
        return (
            f"Target `{training.target}`. Every head is trained {trained_rows(training)}: the "
            f"corpus by {training.text.weight:g}, {training.teacher_data.count} texts of the "
            f"target by {training.teacher_data.weight:g}, the same rows in the same order for all "
            f"kinds of a seed. Losses: {head.feature_weight:g} of the feature, "
            f"{head.logits_weight:g} of the distribution; noise {head.feature_noise:g}; "
            f"training-time test steps: {head.ttt_steps}. {recipe.seeds} seeds. `{WIDE}` has "
            "EAGLE's shape and, by a wider feed-forward, FSPAD's parameters. Coupled "
            f"verification. {measured_on(recipe)} The small models were trained elsewhere, and "
            "longer or shorter: they are here for their latency."
        )

    def _sections(self) -> Iterator[tuple[str, Iterable[str]]]:
        recipe, found = self.recipe, self.found
        rows = self.heads
        if all(tree in recipe.draft_trees for tree in recipe.head_trees):
            rows = {**rows, **{draft: {"draft": draft} for draft in recipe.drafts}}
        for domain in DOMAINS:
            where = {"domain": domain, **LENGTH}
            yield f"Acceptance length, {domain}", grid(found, rows, self.places, ".2f", **where)
        for domain in DOMAINS:
            where = {"domain": domain, **OVER_EAGLE}
            heading = f"Acceptance length over EAGLE's, seed by seed, {domain}"
            yield heading, grid(found, self.changed, self.places, "+.3f", **where)
        head = (
            "draft | tree | parameters | ms per round, the draft | ms per round | "
            "acceptance length | tokens per second | speed-up"
        )
        form = (
            "{name} | {tree} | {parameters:,} | {draft_ms:.2f} | {round_ms:.2f} | "
            "{acceptance_length:.2f} | {tokens_per_second:.0f} | {speedup:.2f}"
        )
        for temperature in recipe.temperatures:
            where = {"draft": PLAIN, "temperature": temperature}
            said = (
                "One head of each kind, seed 0, and small models, a prompt at a time; plain "
                f"decoding generates {found.value(Measure.TOKENS_PER_SECOND, **where):.0f} tokens "
                "per second. The parameters of small models are all of theirs; heads use the "
                "target's embedding.\n"
            )
            here = [
                {"name": NAMES.get(one["draft"], one["draft"]), **one}
                for one in self.ranking
                if one["temperature"] == temperature
            ]
            table = listing(head, form, sorted(here, key=lambda one: one["draft_ms"]))
            yield f"Latency and speed at T={temperature:g}, by what the draft takes", [said, *table]
        for domain in DOMAINS:
            for tree in recipe.head_trees:
                for temperature in recipe.temperatures:
                    where = {"domain": domain, "temperature": temperature, "tree": tree}
                    heading = f"Accepted by position, {domain}, T={temperature:g}, {tree}"
                    levels = self._positions(tree)
                    yield heading, grid(found, self.heads, levels, ".3f", **where, **ACCEPTED)

    def _figures(self) -> list[Figure]:
        recipe, temperatures = self.recipe, self.recipe.temperatures
        groups = [name.replace(", ", "\n") for name in self.places]

        def rounds(axes: "Axes", domain: str) -> None:
            means = self.found.means(self.heads, self.places, domain=domain, **LENGTH)
            bars(axes, groups, means)
            axes.set_title(domain, fontsize="small")
            axes.set_ylabel("acceptance length")
            axes.set_ylim(bottom=1)

        def gains(axes: "Axes", domain: str) -> None:
            gained = self.found.means(self.changed, self.places, domain=domain, **OVER_EAGLE)
            bars(axes, groups, gained, first=1)
            axes.set_title(domain, fontsize="small")
            axes.set_ylabel("acceptance length over EAGLE's, seed by seed")
            axes.axhline(0, color="black", linewidth=0.8)

        def depth(axes: "Axes", temperature: float) -> None:
            for tree, style in zip(recipe.head_trees, (":", "-"), strict=True):
                where = {"domain": IN_DOMAIN, "temperature": temperature, "tree": tree}
                places = self._positions(tree)
                levels = [one["position"] for one in places.values()]
                means = self.found.means(self.heads, places, **where, **ACCEPTED)
                for number, (name, row) in enumerate(means.items()):
                    how = {"color": f"C{number}", "label": name if style == "-" else None}
                    line(axes, levels, row, linestyle=style, **how)
                axes.set_xticks(levels)
            title = f"T={temperature:g}; solid: {recipe.dynamic_tree}, dotted: {recipe.tree}"
            across = "position; below 1 the head reads drafted features"
            label(axes, title, across, "share of rounds")
            axes.set_ylim(bottom=0)

        def latency(axes: "Axes", temperature: float) -> None:
            marks = {recipe.tree: "o", recipe.dynamic_tree: "^"}
            how = {"xytext": (4, 4), "textcoords": "offset points", "fontsize": "xx-small"}
            for number, draft in enumerate((*recipe.kinds, *recipe.drafts)):
                name: str | None = NAMES.get(draft, draft)
                for one in self.ranking:
                    if (one["draft"], one["temperature"]) == (draft, temperature):
                        at = one["draft_ms"], one["acceptance_length"].value
                        mark = marks[one["tree"]] if draft in recipe.kinds else "s"
                        axes.scatter(*at, color=f"C{number}", marker=mark, label=name)
                        name = None
                        if mark == "s":
                            axes.annotate(one["tree"], at, **how)
            heads = f"heads: round {recipe.tree}, triangle {recipe.dynamic_tree}"
            title = f"T={temperature:g}; {heads}; square: models"
            label(axes, title, "milliseconds per round that the draft takes", "acceptance length")

        over, takes = "95% intervals over seeds", "What a draft takes and what it brings, in domain"
        return [
            panels("rounds.png", f"Acceptance length by kind of head; {over}", DOMAINS, rounds),
            panels("gains.png", f"What each change brings; {over}", DOMAINS, gains),
            panels("depth.png", "Accepted by position, in domain", temperatures, depth),
            panels("latency.png", takes, temperatures, latency),
        ]


def _described(draft: str, tree: str, acceptance_length: Mean, **timed: float) -> str:
    return (
        f"{NAMES.get(draft, draft)} on {tree} drafts for {timed['draft_ms']:.2f} ms per round, has "
        f"an acceptance length of {acceptance_length:.2f} and generates "
        f"{timed['tokens_per_second']:.0f} tokens per second ({timed['speedup']:.2f} of plain "
        "decoding)"
    )


EXPERIMENT = Experiment(FeatureDraftStudy, measure, FeatureDraftReport.write)

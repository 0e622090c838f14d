"""What the temperature study found, what a person reads of it, and its figures."""

import functools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from jspec.bench.plots import Figure, label, line
from jspec.bench.timing import PLAIN
from jspec.studies.common.measure import DOMAINS, IN_DOMAIN
from jspec.studies.common.recipe import COUPLED, Experiment, measured_on, trained_rows
from jspec.studies.common.records import Measure, PairedDifference, Places, Records, Where
from jspec.studies.common.report import Report, grid, listing, panels, table
from jspec.studies.temperature.measure import NODE_RULES, UNTRAINED, measure, methods
from jspec.studies.temperature.recipe import TemperatureStudy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HOT = 1.5  # from which on the third question asks
OVERLAP: Where = {"measure": Measure.OVERLAP}
# Acceptance at one node, by the rule's name for people.
AT_NODE: Places = {"overlap (one candidate)": OVERLAP} | {
    name: {"measure": Measure.NODE_ACCEPTANCE, "rule": rule}
    for name, rule in zip(("top-k", "recursive rejection", COUPLED), NODE_RULES, strict=True)
}
DECISIONS = {1: "better", 0: "undecided", -1: "worse"}


class TemperatureReport(Report[TemperatureStudy, Records]):
    """Acceptance by the temperatures of training and serving."""

    title = "Trained at one temperature, served at another"

    def __init__(self, recipe: TemperatureStudy, found: Records) -> None:
        super().__init__(recipe, found)
        self.served: Places = {f"T={one:g}": {"temperature": one} for one in recipe.temperatures}
        kinds = UNTRAINED, *recipe.train_temperatures
        self.kinds: Places = {_name(kind): {"draft": kind} for kind in kinds}
        length = {"measure": Measure.ACCEPTANCE_LENGTH}
        self.decoded: Where = {**length, "rule": COUPLED, "tree": recipe.tree}
        self.by_decoding: Places = {
            name: {**length, "rule": rule, "tree": tree}
            for name, (rule, tree) in methods(recipe.width).items()
        }

    @functools.cached_property
    def matched(self) -> list[PairedDifference]:
        """The matched draft against those of T = 1, of T = 0, of ranges and sets, and the
        untrained."""
        recipe = self.recipe
        several = [t for t in recipe.train_temperatures if "," in t or ".." in t]
        rivals = dict.fromkeys((recipe.reference, recipe.matched(0.0), *several, UNTRAINED))
        return [
            self.found.compare(one=ours, other=rival, domain=domain, temperature=t, **where)
            for domain in DOMAINS
            for t in recipe.temperatures
            if (ours := recipe.matched(t))
            for rival in rivals
            if rival and rival != ours
            for where in (OVERLAP, self.decoded)
        ]

    @functools.cached_property
    def rules(self) -> list[PairedDifference]:
        """Coupled verification against the other rules at one node."""
        node = {"measure": Measure.NODE_ACCEPTANCE, "draft": self.recipe.reference}
        return [
            self.found.compare(
                one=COUPLED, other=rule, field="rule", domain=domain, temperature=t, **node
            )
            for domain in DOMAINS
            for t in self.recipe.temperatures
            for rule in NODE_RULES
            if rule != COUPLED
        ]

    @functools.cached_property
    def controls(self) -> list[dict[str, Any]]:
        """What the draft's own temperature brings without training, wherever text is sampled: the
        overlap in domain of two kinds of drafts at the target's temperature and at the best of all
        that were tried for the draft alone; and how much better than that the matched one is."""
        return [
            self._control(temperature) for temperature in self.recipe.temperatures if temperature
        ]

    def _control(self, temperature: float) -> dict[str, Any]:
        recipe, mean = self.recipe, self.found.mean
        place = {"domain": IN_DOMAIN, "temperature": temperature, **OVERLAP}
        found: dict[str, Any] = {"temperature": temperature}
        for name, draft in (("untrained", UNTRAINED), ("reference", recipe.reference)):
            here = {"draft": draft, **place}
            tried = {own: mean(draft_temperature=own, **here) for own in recipe.draft_temperatures}
            own = max(tried, key=lambda one, tried=tried: tried[one].value)
            found[name] = {"as_served": mean(**here), "best": tried[own], "draft_temperature": own}
        found |= {"matched": None, "over_reference": None}
        if ours := recipe.matched(temperature):
            own = found["reference"]["draft_temperature"]
            rival = {"draft": recipe.reference, "draft_temperature": own}
            found["matched"] = mean(draft=ours, **place)
            found["over_reference"] = self.found.difference({"draft": ours}, rival, **place)
        return found

    def _computed(self) -> dict[str, Any]:
        return {"differences": self.matched + self.rules, "controls": self.controls}

    def answers(self) -> Iterator[str]:
        """As `Report.answers`."""
        recipe = self.recipe
        coldest, hottest = min(recipe.temperatures), max(recipe.temperatures)
        for draft in (UNTRAINED, recipe.reference):
            found = self.found.means(AT_NODE, self.served, draft=draft, domain=IN_DOMAIN)
            for rule, means in found.items():
                at = {t: one.value for t, one in zip(recipe.temperatures, means, strict=True)}
                lowest = min(sorted(at), key=at.__getitem__)
                yield (
                    f"{rule}, {_name(draft)}: {at[coldest]:.3f} at T={coldest:g}, least at "
                    f"T={lowest:g} with {at[lowest]:.3f} ({at[lowest] - at[coldest]:+.3f}), "
                    f"{at[hottest]:.3f} at T={hottest:g}."
                )
        overlaps = [one for one in self.matched if one.measure == Measure.OVERLAP]
        for place in dict.fromkeys((one.other, domain) for one in overlaps for domain in DOMAINS):
            here = [one for one in overlaps if (one.other, one.domain) == place]
            signs = [one.difference.sign for one in here]
            each = ", ".join(f"T={one.temperature:g} {one.difference:+.4f}" for one in here)
            if here:
                yield (
                    f"Matched against {_name(place[0])}, {place[1]}: better in {signs.count(1)} "
                    f"of {len(signs)} cells, worse in {signs.count(-1)}, undecided in "
                    f"{signs.count(0)} ({each})."
                )
        for one in self.controls:
            if one["over_reference"] is not None:
                yield (
                    f"At T={one['temperature']:g} the matched draft's overlap is "
                    f"{one['over_reference']:+.4f} over that of the draft trained at "
                    f"{recipe.reference}, sampled at the best temperature for it, "
                    f"{one['reference']['draft_temperature']:g}."
                )
        hot = [x for x in self.rules if x.domain == IN_DOMAIN and x.temperature >= HOT]
        for one in sorted(hot, key=lambda one: NODE_RULES.index(one.other)):
            yield (
                f"Coupled against {one.other} at T={one.temperature:g}, {recipe.width} "
                f"candidates: {one.difference:+.4f}."
            )

    def _setting(self) -> str:
        training = self.recipe.training
        return (
            f"Target `{training.target}`, draft `{training.draft or 'fresh'}`. Every draft is "
            f"trained {trained_rows(training)} that hold {training.teacher_data.count} texts of "
            f"the target, of up to {training.teacher_data.max_new_tokens} tokens, and their "
            f"prompts; {self.recipe.seeds} seeds, each with prompts, texts and an order of its "
            "own. The temperature of these texts and of the loss is tied, and is the row; both "
            f"models are sampled at the column's. {measured_on(self.recipe)} Losses carry no "
            "factor of T²."
        )

    def _sections(self) -> Iterator[tuple[str, Iterable[str]]]:
        recipe, served = self.recipe, self.served
        for domain in DOMAINS:
            heading = f"Overlap, {domain}: what token-level rejection accepts of one draft token"
            overlap = {"domain": domain, **OVERLAP}
            yield heading, grid(self.found, self.kinds, served, ".3f", **overlap)
        for domain in DOMAINS:
            heading = f"Acceptance length, {domain}: coupled, `{recipe.tree}`, by decoding"
            length = {"domain": domain, **self.decoded}
            yield heading, grid(self.found, self.kinds, served, ".2f", **length)
        rates, gains = (
            self.found.means(
                {PLAIN: {"draft": PLAIN}, **self.kinds}, served, measure=one, domain=IN_DOMAIN
            )
            for one in (Measure.TOKENS_PER_SECOND, Measure.SPEEDUP)
        )
        rows = (
            [kind, *(f"{x:.0f} ({y:.2f})" for x, y in zip(rates[kind], gains[kind], strict=True))]
            for kind in rates
        )
        heading = "Tokens per second, seed 0, and speed-up at the same temperature"
        yield heading, table(["", *served], rows)
        candidates = f"{recipe.width} candidates"
        for kind in (UNTRAINED, recipe.reference):
            place = {"draft": kind, "domain": IN_DOMAIN}
            said = f"\nAcceptance length by decoding, {candidates} a round:\n"
            at_node = grid(self.found, AT_NODE, served, ".3f", **place)
            decoded = grid(self.found, self.by_decoding, served, ".2f", **place)
            heading = f"Rules side by side, draft {_name(kind)}: one node, {candidates}"
            yield heading, [*at_node, said, *decoded]
        said = "Overlap, in domain, at the target's temperature and at the draft's own best.\n"
        trained = _name(recipe.reference)
        head = (
            f"served at | untrained | untrained, best | {trained} | {trained}, best | matched | "
            "over that best"
        )
        form = (
            "{temperature:g} | {untrained[as_served]:.3f} | {untrained[best]:.3f} at "
            "{untrained[draft_temperature]:g} | {reference[as_served]:.3f} | "
            "{reference[best]:.3f} at {reference[draft_temperature]:g} | {matched:.3f} | "
            "{over_reference:+.4f}"
        )
        heading = "The free control: the draft sampled at another temperature"
        yield heading, [said, *listing(head, form, self.controls)]
        head = "domain | served at | measure | against | matched is better by | "
        form = "{domain} | {temperature:g} | {measure} | {other} | {difference:+.4f} | {one}"
        named = (
            {**one._asdict(), "other": _name(one.other), "one": DECISIONS[one.difference.sign]}
            for one in self.matched
        )
        heading = "The diagonal: matched drafts against others, seed by seed"
        yield heading, listing(head, form, named)

    def _figures(self) -> list[Figure]:
        recipe = self.recipe

        def rules(axes: "Axes", panel: tuple[str, Places]) -> None:
            title, places = panel
            reference, untrained = (
                self.found.means(places, self.served, draft=kind, domain=IN_DOMAIN)
                for kind in (recipe.reference, UNTRAINED)
            )
            for number, name in enumerate(places):
                color = f"C{number}"
                line(axes, recipe.temperatures, reference[name], color=color, label=name)
                line(axes, recipe.temperatures, untrained[name], color=color, linestyle=":")
            lines = f"solid: trained at {recipe.reference}, dotted: untrained"
            label(axes, f"{title}; {lines}", "temperature of target and draft", "")
            axes.set_ylim(bottom=0)

        def control(axes: "Axes", kind: str) -> None:
            own = sorted(recipe.draft_temperatures)
            place = {"draft": kind, "domain": IN_DOMAIN, **OVERLAP}
            for number, served in enumerate(filter(None, recipe.temperatures)):
                here = {"temperature": served, **place}
                values = [self.found.value(draft_temperature=t, **here) for t in own]
                color, name = f"C{number}", f"served at {served:g}"
                axes.plot(own, values, color=color, marker=".", label=name)
                as_served = self.found.value(**here)
                axes.plot([served], [as_served], color=color, marker="o", markersize=9)
            title = f"draft {_name(kind)}; the ring: draft and target at one temperature"
            label(axes, title, "temperature of the draft alone", "sum of min(p, q)")

        overlaps, gains = (
            [(f"sum of min(p, q), {one}", form, {"domain": one, **OVERLAP}) for one in DOMAINS]
            for form in ("{:.3f}", "{:+.3f}")
        )
        length = f"acceptance length, coupled {recipe.tree}, {IN_DOMAIN}"
        speed = f"speed-up at the same T (seed 0), {IN_DOMAIN}"
        rounds = [
            (length, "{:.2f}", {"domain": IN_DOMAIN, **self.decoded}),
            (speed, "{:.2f}x", {"domain": IN_DOMAIN, "measure": Measure.SPEEDUP}),
        ]
        sides = [
            (f"accepted at one node, {recipe.width} candidates", AT_NODE),
            ("acceptance length by decoding", self.by_decoding),
        ]
        served, own = "trained against served", "The draft sampled at another temperature"
        heat = self._paint_heat
        return [
            panels("overlap.png", f"Acceptance of one draft token, {served}", overlaps, heat),
            panels("gain.png", "What training gains over the untrained draft", gains, heat),
            panels("rounds.png", f"Acceptance length and speed, {served}", rounds, heat),
            panels("rules.png", "Rules at equal nodes, by temperature", sides, rules),
            panels("control.png", own, (UNTRAINED, recipe.reference), control),
        ]

    def _paint_heat(self, axes: "Axes", panel: tuple[str, str, Where]) -> None:
        """A cell for every kind of draft and temperature, its number inside; where the two
        temperatures are one, framed. Of signed numbers it is what training gains."""
        from matplotlib.patches import Rectangle

        title, form, where = panel
        kinds = [UNTRAINED, *self.recipe.train_temperatures]
        means = self.found.means(self.kinds, self.served, **where)
        values = np.array([[one.value for one in row] for row in means.values()])
        colours: dict[str, Any] = {"cmap": "viridis"}
        if signed := "+" in form:
            title, kinds, values = f"gain in {title}", kinds[1:], values[1:] - values[:1]
            most = float(np.abs(values).max()) or 1.0
            colours = {"cmap": "RdBu", "vmin": -most, "vmax": most}
        image = axes.imshow(values, aspect="auto", **colours)
        temperatures = self.recipe.temperatures
        centre: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": "small"}
        for (row, column), value in np.ndenumerate(values):
            share = float(np.asarray(image.norm(value)))
            pale = abs(share - 0.5) < 0.3 if signed else share > 0.6
            axes.text(column, row, form.format(value), color="black" if pale else "white", **centre)
            if kinds[row] == self.recipe.matched(temperatures[column]):
                corner = column - 0.5, row - 0.5
                axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="red", linewidth=2))
        axes.set_xticks(range(len(temperatures)), [f"{t:g}" for t in temperatures])
        axes.set_yticks(range(len(kinds)), kinds)
        axes.set_xlabel("served at (target and draft)")
        axes.set_ylabel("trained at (answers and loss)")
        axes.set_title(f"{title}; framed: matched", fontsize="small")


def _name(kind: str) -> str:
    """A kind of draft as a reader knows it."""
    return f"trained at {kind}" if kind[:1].isdigit() or kind[:1] == "." else kind


EXPERIMENT = Experiment(TemperatureStudy, measure, TemperatureReport.write)

"""What the multi-candidate study found, what a person reads of it, and its figures."""

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jspec.bench.plots import Figure, label
from jspec.bench.timing import PLAIN
from jspec.studies.common.recipe import COUPLED, LOSSY, Experiment
from jspec.studies.common.records import Measure, Places, Records
from jspec.studies.common.report import Report, listing, panels, table
from jspec.studies.multi_candidate.measure import DRIFT, EARLY, FASTEST, HEADLINE, headline, measure
from jspec.studies.multi_candidate.recipe import ON_CHAINS, STOPPING, Decoding, MultiCandidateStudy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What the paper says that it gains at most (abstract, versions 2 and 3).
PUBLISHED_GAIN = 0.275
# What a group's table says of each method.
HEAD = (
    "method | tokens per second | half the range, tokens per second | speed-up | "
    "acceptance length | acceptance rate, of the tree's depth | "
    "acceptance rate, of the depth drafted | draft tokens of the tree"
)
ROW = (
    "{method} | {tokens_per_second:.0f} | {tokens_per_second_spread:.0f} | {speedup:.2f} | "
    "{acceptance_length:.2f} | {acceptance_rate:.2f} | {acceptance_rate_drafted:.2f} | "
    "{max_draft_tokens:.0f}"
)
# What a drift has, and as which measure.
DRIFTS = {
    "identical_texts": Measure.IDENTICAL_TEXTS,
    "total_variation": Measure.TOTAL_VARIATION,
    "by_chance": Measure.TOTAL_VARIATION_BY_CHANCE,
}


class Factor(NamedTuple):
    """How many times as fast one method is as another."""

    what: str
    one: Decoding
    other: Decoding
    times: float

    @property
    def percent(self) -> str:
        """How much faster it is."""
        return f"{self.times - 1:+.1%}"


class MultiCandidateReport(Report[MultiCandidateStudy, Records]):
    """The best of each kind of method, what each part of it brings, and how far each drifts."""

    title = "Many candidates, with decisions to stop"

    @functools.cached_property
    def _fastest(self) -> dict[float | None, str]:
        """The tree that `tree=auto` took at each temperature."""
        return {one.temperature: one.tree for one in self.found.all if one.group == FASTEST}

    def _side_by_side(self, temperature: float) -> list[Decoding]:
        return headline(self.recipe, self.found, temperature, self._fastest[temperature])

    def _speedup(self, method: Decoding, **place: Any) -> float:
        return self.found.value(Measure.SPEEDUP, method=method.name, **place)

    def _factor(self, what: str, one: Decoding, other: Decoding, **place: Any) -> Factor:
        times = self._speedup(one, **place) / self._speedup(other, **place)
        return Factor(what, one, other, times)

    @functools.cached_property
    def headlines(self) -> list[dict[str, Any]]:
        """At each temperature the faster of the fastest tree and of the best method that stops
        early, which is `best`; what it gains over the baseline and over the best plain chain, what
        the `early` one gains over that chain, and what each part of it brings."""
        return [self._headline(temperature) for temperature in self.recipe.temperatures]

    def _headline(self, temperature: float) -> dict[str, Any]:
        recipe, methods = self.recipe, self._side_by_side(temperature)
        place = {"group": HEADLINE, "temperature": temperature}
        speedup = functools.partial(self._speedup, **place)
        factor = functools.partial(self._factor, **place)
        chain = max((one for one in methods if one.is_chain), key=speedup)
        tree = Decoding(COUPLED, self._fastest[temperature])
        early = max((one for one in methods if one.kind == EARLY and one.bucketed), key=speedup)
        best = max((tree, early), key=speedup)
        coupled, whole = Decoding(COUPLED, recipe.baseline), early._replace(stop="")
        unbucketed = early._replace(bucketed=False)
        over_baseline = "the exact improved method over the baseline"
        over_chain = "the best method that stops early over the best plain chain"
        return {
            "temperature": temperature,
            "best": best,
            "chain": chain,
            "over_baseline": factor(over_baseline, best, recipe.mcsd),
            "over_chain": factor("and over the best plain chain", best, chain),
            "early": factor(over_chain, early, chain),
            "parts": (
                factor("coupling, on the baseline's tree", coupled, recipe.mcsd),
                factor("the tree's shape", tree, coupled),
                factor("that tree in the place of the baseline's", whole, coupled),
                factor("stopping early, on its own tree", unbucketed, whole),
                factor("verification buckets", early, unbucketed),
            ),
        }

    def stopping(self, temperature: float) -> dict[Decoding, list[Factor]]:
        """By rule and tree that are drafted to their end, what each stopping rule brings there at
        its best threshold, the best first."""
        found: dict[Decoding, dict[str, Factor]] = {}
        tried = [(group, one) for group in STOPPING for one in self.recipe.groups()[group]]
        for group, method in tried:
            if method.stop:
                whole = method._replace(stop="")
                name = method.stop.rpartition(":")[0] or method.stop
                place = {"group": group, "temperature": temperature}
                one = self._factor(name, method, whole, **place)
                here = found.setdefault(whole, {})
                here[name] = max(here.get(name, one), one, key=lambda factor: factor.times)
        return {x: sorted(y.values(), key=lambda one: -one.times) for x, y in found.items()}

    def own_best(self, temperature: float) -> list[tuple[Decoding, float]]:
        """Of every kind of methods that were timed side by side the fastest, with its speed-up, the
        fastest kind first."""
        found: dict[str, tuple[float, Decoding]] = {}
        for method in self._side_by_side(temperature):
            if method.bucketed:
                speed = self._speedup(method, group=HEADLINE, temperature=temperature)
                found[method.kind] = max(found.get(method.kind, (0.0, method)), (speed, method))
        return [(method, speed) for speed, method in sorted(found.values(), reverse=True)]

    @functools.cached_property
    def drifts(self) -> list[dict[str, Any]]:
        """How far each method drifts that was looked at: the share of texts that are plain
        decoding's at temperature 0, total variation of three tokens and what chance gives (None
        where it was not counted), and nats per token at each temperature, of its text and of plain
        decoding's."""
        recipe, found = self.recipe, {}
        methods = [one for group in recipe.groups().values() for one in group]
        methods += [recipe.mcsd, Decoding(COUPLED, recipe.baseline)]
        named = {one.name: one for one in methods}
        for one in self.found.all:
            if one.group == DRIFT:
                found.setdefault(one.method, {})[one.measure, one.temperature] = one.value
        drifted = []
        for name, mine in found.items():
            only = {measure: value for (measure, _), value in mine.items()}
            shares = {field: only.get(measure) for field, measure in DRIFTS.items()}
            nats = Measure.TEXT_CROSS_ENTROPY, Measure.PLAIN_CROSS_ENTROPY
            both = {t: tuple(mine[one, t] for one in nats) for t in recipe.temperatures}
            drifted.append({"method": named[name], **shares, "cross_entropies": both})
        return drifted

    def _computed(self) -> dict[str, Any]:
        return {"headlines": self.headlines, "drift": self.drifts}

    def answers(self) -> Iterator[str]:
        """As `Report.answers`."""
        for one in self.headlines:
            here, over = f"T={one['temperature']:g}", one["over_baseline"].times
            gain = f"{abs(over - 1):.1%} {'more' if over >= 1 else 'fewer'}"
            plain = ", itself a plain chain" if one["best"].is_chain else ""
            early = one["early"]
            yield (
                f"{here}: {one['best'].name}{plain} generates {gain} tokens per second than "
                f"{self.recipe.mcsd.name}, each compared with plain decoding in its own turns "
                f"(the paper: at most {PUBLISHED_GAIN:.1%}, with a method that changes the text), "
                f"and {one['over_chain'].times:.2f} times the best plain chain's, "
                f"{one['chain'].name}; the best method that stops early, {early.one.name}, "
                f"{early.times:.2f} times."
            )
            best = self.own_best(one["temperature"])
            kinds = ", ".join(f"{method.name} {speed:.2f}" for method, speed in best)
            yield (
                f"{here}: each kind's own best, side by side, in times of plain decoding: {kinds}."
            )
            parts = "; ".join(f"{part.what} {part.percent}" for part in one["parts"])
            yield f"{here}: each part by itself: {parts}."
            for whole, ranked in self.stopping(one["temperature"]).items():
                each = ", ".join(f"{x.percent} ({x.one.stop})" for x in ranked)
                yield f"{here}: along {whole.name} a decision to stop makes it faster by {each}."
        for one in self.drifts:
            off, identical = one["total_variation"], one["identical_texts"]
            same = f"; {identical or 0:.0%} of greedy texts are plain decoding's"
            if off is not None:
                yield (
                    f"{one['method'].name}: total variation of three tokens {off:.3f}, where an "
                    f"exact rule shows {one['by_chance']:.3f}{'' if identical is None else same}."
                )

    def _setting(self) -> str:
        recipe = self.recipe
        return (
            f"{recipe.target} and {recipe.draft}, {recipe.prompts} held-out prompts of "
            f"{recipe.prompt_length} tokens, {recipe.max_new_tokens} new ones, medians of "
            f"{recipe.repetitions} interleaved repetitions of each group, batch 1, float32. A "
            "method is a rule, a tree, and what stops drafting early. The acceptance rate is "
            "accepted draft tokens over the tree's depth, or over the depth drafted; where "
            "drafting stops early the second rises though nothing got faster. Methods named lossy "
            "change the text, and are here to be compared with; their draft tokens are those below "
            "the target's own roots. What is fastest is chosen by the same prompts that it is "
            "timed on."
        )

    def _sections(self) -> Iterator[tuple[str, Iterator[str]]]:
        temperatures = self.recipe.temperatures
        for group in (HEADLINE, *self.recipe.groups()):
            for temperature in temperatures:
                yield f"{group}, T={temperature:g}", self._table(group, temperature)
        nats = [f"nats per token, T={temperature:g} (plain)" for temperature in temperatures]
        head = ["method", "greedy texts identical", "total variation (by chance)", *nats]
        yield "Drift", table(head, map(_drift_row, self.drifts))

    def _table(self, group: str, temperature: float) -> Iterator[str]:
        """All that was measured of a group's methods."""
        here: dict[str, dict[str, Any]] = {}
        for one in self.found.all:
            if (one.group, one.temperature) == (group, temperature):
                name = "plain decoding" if one.method == PLAIN else one.method
                row = here.setdefault(name, {"method": name, **dict.fromkeys(Measure)})
                row[one.measure] = one.value
        yield from listing(HEAD, ROW, here.values())

    def _figures(self) -> list[Figure]:
        recipe, temperatures = self.recipe, self.recipe.temperatures

        def curves(axes: "Axes", temperature: float, rules: Places, trees: Places) -> None:
            place = {"temperature": temperature, "stop": ""}
            for rule, row in self.found.means(rules, trees, **place).items():
                axes.plot(list(trees), [one.value for one in row], marker=".", label=rule)

        def chains(axes: "Axes", temperature: float) -> None:
            place = {"measure": Measure.SPEEDUP, "group": "chains"}
            rules = {rule: {"rule": rule, **place} for rule in ON_CHAINS}
            curves(axes, temperature, rules, {x: {"tree": f"chain:{x}"} for x in recipe.depths})
            axes.axhline(1, color="black", linewidth=0.8)
            label(axes, f"T={temperature:g}", "draft tokens per round", "speed-up")

        def forks(axes: "Axes", temperature: float) -> None:
            length = {"measure": Measure.ACCEPTANCE_LENGTH}
            rules = {
                LOSSY: {"rule": LOSSY, "group": "published", **length},
                COUPLED: {"rule": COUPLED, "group": "forks", **length},
            }
            trees = {width: {"tree": f"fork:{width}x{recipe.fork}"} for width in recipe.widths}
            curves(axes, temperature, rules, trees)
            label(axes, f"T={temperature:g}", "chains of a fork", "acceptance length")

        def drift(panels: Sequence["Axes"]) -> None:
            both = "total_variation", "identical_texts"
            counted = [x for x in self.drifts if None not in (x[both[0]], x[both[1]])]
            for axes, field in zip(panels, both, strict=True):
                axes.barh([one["method"].name for one in counted], [one[field] for one in counted])
                axes.invert_yaxis()
                axes.tick_params(labelsize="small")
            for one in counted[:1]:
                panels[0].axvline(one["by_chance"] or 0, color="black", linewidth=0.8)
            panels[0].set_xlabel("total variation of three tokens, T=1; line: an exact rule")
            panels[1].set_xlabel("greedy texts that are plain decoding's")

        title = "Forks: the published method, which changes the text, and exact ones"
        return [
            panels("depth.png", "Speed of plain chains by their depth", temperatures, chains),
            panels("width.png", title, temperatures, forks),
            Figure("drift.png", "The text drifts with the width", drift),
        ]


def _drift_row(one: dict[str, Any]) -> list[str]:
    off, identical = one["total_variation"], one["identical_texts"]
    return [
        one["method"].name,
        "" if identical is None else f"{identical:.0%}",
        "" if off is None else f"{off:.3f} ({one['by_chance']:.3f})",
        *(f"{ours:.3f} ({plain:.3f})" for ours, plain in one["cross_entropies"].values()),
    ]


EXPERIMENT = Experiment(MultiCandidateStudy, measure, MultiCandidateReport.write)

"""What the draft-shape study found, what a person reads of it, and its figures."""

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.stats import kendalltau, spearmanr

from jspec.bench.plots import Figure, label
from jspec.bench.timing import PLAIN
from jspec.studies.common.recipe import Experiment, trained_rows
from jspec.studies.common.records import Measure, Records
from jspec.studies.common.report import Report, listing, panels
from jspec.studies.draft_shape.measure import chain, measure
from jspec.studies.draft_shape.recipe import DraftShapeStudy, name_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What the paper says that its designed draft gains over the best ordinary one, in its versions.
PUBLISHED = 0.60, 1.11


class Place(NamedTuple):
    """A target, a temperature and a batch size: where drafts are ranked."""

    target: str
    temperature: float
    batch: int

    def __str__(self) -> str:
        return f"{self.target}, T={self.temperature:g}, batch {self.batch}"


# What might go with speed.
NUMBERS = {
    "latency": "draft_ms_per_token",
    "language-model loss": "cross_entropy",
    "acceptance": "acceptance_rate",
    "parameters": "parameters",
}
Entry = dict[str, Any]


class DraftShapeReport(Report[DraftShapeStudy, Records]):
    """Which shapes are fast, and how well that was predicted."""

    title = "Which shape of a draft is fast, and what was predicted of it"

    @functools.cached_property
    def rankings(self) -> dict[Place, list[Entry]]:
        """Every draft of a place, the fastest first, each at its own best depth, as measured and as
        predicted, wherever there are drafts.

        `tokens_per_second` is its speed-up times what plain decoding generated on average beside
        all drafts: they were timed one after the other, and a machine is not the same all the
        while.
        """
        recipe, sized = self.recipe, [x for x in self.found.all if x.measure == Measure.PARAMETERS]
        return {
            Place(target, temperature, batch): self._ranking(
                Place(target, temperature, batch), [x.draft for x in sized if x.target == target]
            )
            for target in recipe.targets
            if any(one.target == target for one in sized)
            for temperature in recipe.temperatures
            for batch in recipe.batches
        }

    def _ranking(self, place: Place, drafts: Sequence[str]) -> list[Entry]:
        value = functools.partial(self.found.value, target=place.target)
        here = functools.partial(self.found.value, **place._asdict())
        plain = np.mean([here(Measure.TOKENS_PER_SECOND, draft=PLAIN, group=x) for x in drafts])

        def best(draft: str, measure: Measure) -> tuple[int, float]:
            depths = self.recipe.depths
            found = {depth: here(measure, draft=draft, **chain(depth)) for depth in depths}
            depth = max(found, key=found.__getitem__)
            return depth, found[depth]

        entries = []
        for draft in drafts:
            depth, speedup = best(draft, Measure.SPEEDUP)
            predicted_depth, predicted = best(draft, Measure.PREDICTED_SPEEDUP)
            first = {"draft": draft, "temperature": place.temperature, "position": 1}
            entries.append({
                "draft": draft,
                "place": place,
                "parameters": int(value(Measure.PARAMETERS, draft=draft)),
                "cross_entropy": value(Measure.CROSS_ENTROPY, draft=draft),
                "acceptance_rate": value(Measure.ACCEPTED_BY_POSITION, **first),
                "draft_ms_per_token": here(Measure.DRAFT_MS_PER_TOKEN, draft=draft),
                "depth": depth,
                "speedup": speedup,
                "tokens_per_second": float(speedup * plain),
                "predicted_depth": predicted_depth,
                "predicted_speedup": predicted,
            })  # fmt: skip
        return sorted(entries, key=lambda one: -one["speedup"])

    @functools.cached_property
    def correlations(self) -> list[dict[str, Any]]:
        """How each number goes with speed, over all drafts of a place: Spearman's and Kendall's
        coefficients. A number that is the same for all goes with nothing."""
        related = []
        for place, found in self.rankings.items():
            speeds = [one["speedup"] for one in found]
            for what, number in NUMBERS.items():
                values, both = [one[number] for one in found], np.zeros(2)
                if len(set(values)) > 1:
                    both = np.array([x(values, speeds)[0] for x in (spearmanr, kendalltau)], float)
                coefficients = dict(zip(("spearman", "kendall"), both.tolist(), strict=True))
                related.append({"place": place, "what": what, **coefficients})
        return related

    def contest(self, place: Place) -> tuple[Entry, Entry]:
        """The best of the shapes of one layer and the best of more, of equal parameters."""
        recipe = self.recipe
        designed = [name_of(text) for text in (recipe.one, *recipe.designed)]
        ordinary = [name_of(text) for text in recipe.deeper]
        # They come with the fastest first.
        one, other = (
            next(x for x in self.rankings[place] if x["draft"] in names)
            for names in (designed, ordinary)
        )
        return one, other

    @functools.cached_property
    def predictions(self) -> dict[str, Any]:
        """How well the planner did: relative errors of tokens per second over all experiments, and
        for each place Kendall's tau of the order of all chains (every draft at every depth), and of
        the drafts, each at its best depth, which can differ by less than a machine's pace drifts.
        """
        speeds = Measure.PREDICTED_TOKENS_PER_SECOND, Measure.TOKENS_PER_SECOND
        errors, chains, drafts = [], {}, {}
        for place, found in self.rankings.items():
            here = functools.partial(self.found.value, **place._asdict())
            pairs = [
                tuple(here(measure, draft=one["draft"], **chain(depth)) for measure in speeds)
                for one in found
                for depth in self.recipe.depths
            ]
            errors += [predicted / measured - 1 for predicted, measured in pairs]
            chains[place] = _tau(pairs)
            drafts[place] = _tau([(one["predicted_speedup"], one["speedup"]) for one in found])
        median = float(np.median(np.abs(errors)))
        return {"median_error": median, "errors": errors, "chains": chains, "drafts": drafts}

    def _computed(self) -> dict[str, Any]:
        return {
            "ranking": [one for found in self.rankings.values() for one in found],
            "correlations": self.correlations,
            "predictions": self.predictions,
        }

    def answers(self) -> Iterator[str]:
        """As `Report.answers`."""
        for what in NUMBERS:
            here = [one for one in self.correlations if one["what"] == what]
            each = ", ".join(f"{one['spearman']:+.2f} ({one['place']})" for one in here)
            yield f"{what} with tokens per second, Spearman's coefficient over drafts: {each}."
        for place in self.rankings:
            designed, ordinary = self.contest(place)
            gain = designed["speedup"] / ordinary["speedup"] - 1
            yield (
                f"{place}: of equal parameters the best draft of one layer, {designed['draft']}, "
                f"generates {gain:+.0%} tokens per second against the best of more, "
                f"{ordinary['draft']} (the paper's designed drafts gained {PUBLISHED[0]:.0%} to "
                f"{PUBLISHED[1]:.0%})."
            )
        found = self.predictions
        chains, drafts = (
            ", ".join(f"{tau:.2f} ({place})" for place, tau in taus.items())
            for taus in (found["chains"], found["drafts"])
        )
        yield (
            "Predicted from rounds along other chains, and from what was accepted on the same "
            f"prompts: of {len(found['errors'])} experiments the median error is "
            f"{found['median_error']:.1%} of tokens per second, and Kendall's tau of the order of "
            f"all chains, drafts by depths, is {chains}; of the drafts alone, each at its best "
            f"depth, {drafts}."
        )

    def _setting(self) -> str:
        recipe = self.recipe
        depths, probes = (", ".join(map(str, x)) for x in (recipe.depths, recipe.probes))
        return (
            f"Every draft starts fresh and is trained {trained_rows(recipe.training)}, the same "
            f"rows in the same order. {recipe.prompts} held-out prompts of "
            f"{recipe.prompt_length} tokens, {recipe.max_new_tokens} new ones, chains of {depths} "
            f"draft tokens, coupled, medians of {recipe.repetitions} interleaved repetitions "
            "beside plain decoding, float32. A draft is called by its layers and width, and after "
            "an a by the width of its attention where that is another. Predictions come of rounds "
            f"along chains of {probes}, timed between the texts, and of what was accepted along "
            "the deepest of all these chains."
        )

    def _sections(self) -> Iterator[tuple[str, Iterator[str]]]:
        head = (
            "draft | parameters | nats per token | accepted at position 1 | ms per draft token | "
            "best depth | speed-up | tokens per second | predicted depth | predicted speed-up"
        )
        form = (
            "{draft} | {parameters:,} | {cross_entropy:.3f} | {acceptance_rate:.3f} | "
            "{draft_ms_per_token:.3f} | {depth} | {speedup:.2f} | {tokens_per_second:.0f} | "
            "{predicted_depth} | {predicted_speedup:.2f}"
        )
        return ((str(place), listing(head, form, found)) for place, found in self.rankings.items())

    def _figures(self) -> Iterator[Figure]:
        numbers = {**NUMBERS, "predicted speed-up": "predicted_speedup"}
        for count, target in enumerate(dict.fromkeys(place.target for place in self.rankings)):
            paint = functools.partial(self._paint, target)
            yield panels(f"shapes_{count}.png", target, list(numbers.items()), paint)

    def _paint(self, target: str, axes: "Axes", panel: tuple[str, str]) -> None:
        what, number = panel
        here = {place: each for place, each in self.rankings.items() if place.target == target}
        for place, each in here.items():
            name = f"T={place.temperature:g}, batch {place.batch}"
            axes.scatter([x[number] for x in each], [x["speedup"] for x in each], label=name)
        for one in next(iter(here.values())):
            axes.annotate(f" {one['draft']}", (one[number], one["speedup"]), fontsize="x-small")
        label(axes, "", what, "speed-up")


def _tau(pairs: Sequence[tuple[float, ...]]) -> float:
    return np.array(kendalltau(*zip(*pairs, strict=True)), float)[0].item()


EXPERIMENT = Experiment(DraftShapeStudy, measure, DraftShapeReport.write)

"""What the draft-shape study found, what a person reads of it, and its figures."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.stats import kendalltau, spearmanr

from jspec.bench.plots import Figure, draw, label
from jspec.bench.timing import PLAIN
from jspec.studies.common.recipe import Experiment, trained_rows
from jspec.studies.common.records import Measure, Records
from jspec.studies.common.report import listing, publish
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


@dataclass(frozen=True)
class Entry:
    """A draft in the ranking of a place, at its own best depth, as measured and as predicted.

    `tokens_per_second` is its speed-up times what plain decoding generated on average beside all
    drafts: they were timed one after the other, and a machine is not the same all the while.
    """

    draft: str
    place: Place
    parameters: int
    cross_entropy: float
    acceptance_rate: float
    draft_ms_per_token: float
    depth: int
    speedup: float
    tokens_per_second: float
    predicted_depth: int
    predicted_speedup: float


class Correlation(NamedTuple):
    """How a draft's number goes with its speed, over all drafts of a place: Spearman's and
    Kendall's coefficients."""

    place: Place
    what: str
    spearman: float
    kendall: float


class Contest(NamedTuple):
    """The best of the shapes of one layer against the best of more, of equal parameters."""

    place: Place
    designed: Entry
    ordinary: Entry

    @property
    def gain(self) -> float:
        """Tokens per second of the one over those of the other, less 1."""
        return self.designed.speedup / self.ordinary.speedup - 1


@dataclass(frozen=True)
class PredictionErrors:
    """How well the planner did: relative errors of tokens per second over all experiments, and for
    each place Kendall's tau of the order of all chains (every draft at every depth), and of the
    drafts, each at its best depth, which can differ by less than a machine's pace drifts."""

    errors: np.ndarray
    chains: dict[Place, float]
    drafts: dict[Place, float]

    @property
    def median(self) -> float:
        """Of the errors' sizes."""
        return float(np.median(np.abs(self.errors)))


def write(recipe: DraftShapeStudy, records: Records) -> list[str]:
    """Writes report, numbers and figures below `output/name`; the answers."""
    found = {place: ranking(recipe, records, place) for place in places(recipe, records)}
    related = [one for each in found.values() for one in correlations(each)]
    contests = [contest(recipe, each) for each in found.values()]
    predicted = prediction_errors(recipe, records)
    return publish(
        recipe,
        title="Which shape of a draft is fast, and what was predicted of it",
        setting=_setting(recipe),
        findings=list(answers(related, contests, predicted)),
        sections=_sections(found),
        computed={
            "ranking": [one for each in found.values() for one in each],
            "correlations": related,
            "predictions": {"median_error": predicted.median, **vars(predicted)},
        },
        records=records,
        figures=draw(_figures(found), recipe.folder),
    )


EXPERIMENT = Experiment(DraftShapeStudy, measure, write)


def places(recipe: DraftShapeStudy, records: Records) -> list[Place]:
    """All in which there are drafts."""
    measured = {one.target for one in records.all}
    return [
        Place(target, temperature, batch)
        for target in recipe.targets
        if target in measured
        for temperature in recipe.temperatures
        for batch in recipe.batches
    ]


def ranking(recipe: DraftShapeStudy, records: Records, place: Place) -> list[Entry]:
    """Every draft of a place, the fastest first."""
    target, temperature, batch = place
    sizes = [x for x in records.all if (x.target, x.measure) == (target, Measure.PARAMETERS)]
    drafts = [one.draft for one in sizes]
    value = functools.partial(records.value, target=target)
    here = functools.partial(value, temperature=temperature, batch=batch)
    plain = np.mean([here(Measure.TOKENS_PER_SECOND, draft=PLAIN, group=draft) for draft in drafts])

    def best(draft: str, measure: Measure) -> tuple[int, float]:
        found = {depth: here(measure, draft=draft, **chain(depth)) for depth in recipe.depths}
        depth = max(found, key=found.__getitem__)
        return depth, found[depth]

    entries = []
    for draft in drafts:
        depth, speedup = best(draft, Measure.SPEEDUP)
        predicted_depth, predicted = best(draft, Measure.PREDICTED_SPEEDUP)
        top = {"draft": draft, "temperature": temperature, "position": 1}
        first = value(Measure.ACCEPTED_BY_POSITION, **top)
        entries.append(Entry(
            draft, place, int(value(Measure.PARAMETERS, draft=draft)),
            value(Measure.CROSS_ENTROPY, draft=draft), first,
            here(Measure.DRAFT_MS_PER_TOKEN, draft=draft), depth, speedup,
            float(speedup * plain), predicted_depth, predicted,
        ))  # fmt: skip
    return sorted(entries, key=lambda one: -one.speedup)


# What might go with speed.
NUMBERS: dict[str, Callable[[Entry], float]] = {
    "latency": lambda one: one.draft_ms_per_token,
    "language-model loss": lambda one: one.cross_entropy,
    "acceptance": lambda one: one.acceptance_rate,
    "parameters": lambda one: one.parameters,
}


def correlations(found: Sequence[Entry]) -> list[Correlation]:
    """Of each number with speed, among drafts of one place; a number that is the same for all goes
    with nothing."""
    speeds = [one.speedup for one in found]
    related = []
    for what, number in NUMBERS.items():
        values = [number(one) for one in found]
        both = np.zeros(2)
        if len(set(values)) > 1:
            both = np.array([one(values, speeds)[0] for one in (spearmanr, kendalltau)], float)
        related.append(Correlation(found[0].place, what, *both.tolist()))
    return related


def contest(recipe: DraftShapeStudy, found: Sequence[Entry]) -> Contest:
    """Of equal parameters, in one place."""
    ordinary = [name_of(text) for text in recipe.deeper]
    designed = [name_of(text) for text in (recipe.one, *recipe.designed)]
    # They come with the fastest first.
    one, other = (next(x for x in found if x.draft in names) for names in (designed, ordinary))
    return Contest(found[0].place, one, other)


def prediction_errors(recipe: DraftShapeStudy, records: Records) -> PredictionErrors:
    """Over everything that was both predicted and measured."""
    errors, chains, drafts = [], {}, {}
    for place in places(recipe, records):
        found = ranking(recipe, records, place)
        pairs = [
            tuple(
                records.value(measure, draft=one.draft, **place._asdict(), **chain(depth))
                for measure in (Measure.PREDICTED_TOKENS_PER_SECOND, Measure.TOKENS_PER_SECOND)
            )
            for one in found
            for depth in recipe.depths
        ]
        errors += [predicted / measured - 1 for predicted, measured in pairs]
        chains[place] = _tau(pairs)
        drafts[place] = _tau([(one.predicted_speedup, one.speedup) for one in found])
    return PredictionErrors(np.array(errors), chains, drafts)


def answers(
    related: Sequence[Correlation], contests: Sequence[Contest], predicted: PredictionErrors
) -> Iterator[str]:
    """The questions, each answered in a line by the numbers."""
    for what in dict.fromkeys(one.what for one in related):
        here = [one for one in related if one.what == what]
        each = ", ".join(f"{one.spearman:+.2f} ({one.place})" for one in here)
        yield f"{what} with tokens per second, Spearman's coefficient over drafts: {each}."
    for one in contests:
        yield (
            f"{one.place}: of equal parameters the best draft of one layer, "
            f"{one.designed.draft}, generates {one.gain:+.0%} tokens per second against the best "
            f"of more, {one.ordinary.draft} (the paper's designed drafts gained {PUBLISHED[0]:.0%} "
            f"to {PUBLISHED[1]:.0%})."
        )
    chains, drafts = (
        ", ".join(f"{tau:.2f} ({place})" for place, tau in taus.items())
        for taus in (predicted.chains, predicted.drafts)
    )
    yield (
        f"Predicted from rounds along other chains, and from what was accepted on the same "
        f"prompts: of {len(predicted.errors)} experiments the median error is "
        f"{predicted.median:.1%} of tokens per second, and Kendall's tau of the order of all "
        f"chains, drafts by depths, is {chains}; of the drafts alone, each at its best depth, "
        f"{drafts}."
    )


def _tau(pairs: Sequence[tuple[float, ...]]) -> float:
    return np.array(kendalltau(*zip(*pairs, strict=True)), float)[0].item()


def _setting(recipe: DraftShapeStudy) -> str:
    return (
        f"Every draft starts fresh and is trained {trained_rows(recipe.training)}, the same rows "
        "in the same order. "
        f"{recipe.prompts} held-out prompts of {recipe.prompt_length} tokens, "
        f"{recipe.max_new_tokens} new ones, chains of {', '.join(map(str, recipe.depths))} draft "
        f"tokens, coupled, medians of {recipe.repetitions} interleaved repetitions beside plain "
        "decoding, float32. A draft is called by its layers and width, and after an a by the width "
        "of its attention where that is another. Predictions come of rounds along chains of "
        f"{', '.join(map(str, recipe.probes))}, timed between the texts, and of what was accepted "
        "along the deepest of all these chains."
    )


def _sections(found: Mapping[Place, Sequence[Entry]]) -> Iterator[str]:
    columns: dict[str, Callable[[Entry], str]] = {
        "draft": lambda one: one.draft,
        "parameters": lambda one: f"{one.parameters:,}",
        "nats per token": lambda one: f"{one.cross_entropy:.3f}",
        "accepted at position 1": lambda one: f"{one.acceptance_rate:.3f}",
        "ms per draft token": lambda one: f"{one.draft_ms_per_token:.3f}",
        "best depth": lambda one: str(one.depth),
        "speed-up": lambda one: f"{one.speedup:.2f}",
        "tokens per second": lambda one: f"{one.tokens_per_second:.0f}",
        "predicted depth": lambda one: str(one.predicted_depth),
        "predicted speed-up": lambda one: f"{one.predicted_speedup:.2f}",
    }
    for place, each in found.items():
        yield f"\n## {place}\n"
        yield from listing(columns, each)


def _figures(found: Mapping[Place, Sequence[Entry]]) -> Iterator[Figure]:
    """One for each target."""
    for number, target in enumerate(dict.fromkeys(place.target for place in found)):
        here = {place: each for place, each in found.items() if place.target == target}
        paint = functools.partial(_paint, here)
        yield Figure(f"shapes_{number}.png", target, paint, 1 + len(NUMBERS))


def _paint(found: Mapping[Place, Sequence[Entry]], panels: Sequence["Axes"]) -> None:
    numbers = {**NUMBERS, "predicted speed-up": lambda one: one.predicted_speedup}
    for axes, (what, number) in zip(panels, numbers.items(), strict=True):
        for place, each in found.items():
            name = f"T={place.temperature:g}, batch {place.batch}"
            axes.scatter([number(one) for one in each], [x.speedup for x in each], label=name)
        for one in next(iter(found.values())):
            axes.annotate(f" {one.draft}", (number(one), one.speedup), fontsize="x-small")
        label(axes, "", what, "speed-up")

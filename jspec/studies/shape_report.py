"""What a person reads of the draft-shape study."""

from collections.abc import Iterator, Sequence
from typing import Any

from jspec.bench.machine import machine
from jspec.studies import shape_figures
from jspec.studies.records import Records
from jspec.studies.shape_findings import (
    PUBLISHED,
    Contest,
    Foretelling,
    Place,
    Relation,
    Standing,
    contest,
    foretelling,
    places,
    relations,
    standings,
)
from jspec.studies.shape_recipe import DraftShapeStudy
from jspec.studies.writing import publish, table

COLUMNS = (
    "draft", "parameters", "nats a token", "kept at depth 1", "ms a guess", "best depth",
    "over plain", "tokens/s", "foretold depth", "foretold over plain",
)  # fmt: skip


def write(recipe: DraftShapeStudy, records: Records) -> list[str]:
    """Writes report, numbers and figures below `output/name`; the answers."""
    about = machine()
    found = {place: standings(recipe, records, place) for place in places(recipe, records)}
    related = [one for each in found.values() for one in relations(each)]
    contests = [contest(recipe, each) for each in found.values()]
    told = foretelling(recipe, records)
    said = list(answers(related, contests, told))
    drawn = shape_figures.draw(recipe, found)
    computed = {
        "standings": [one.record() for each in found.values() for one in each],
        "relations": [{**one._asdict(), "place": one.place._asdict()} for one in related],
        "foretelling": {
            "median_error": told.median,
            "errors": told.errors.tolist(),
            "kendall": [
                {**place._asdict(), "drafts": tau, "chains": told.chains[place]}
                for place, tau in told.order.items()
            ],
        },
    }
    publish(recipe, records, about, said, computed, _lines(recipe, found, said, about, drawn))
    return said


def answers(
    related: Sequence[Relation], contests: Sequence[Contest], told: Foretelling
) -> Iterator[str]:
    """The questions, each answered in a line by the numbers."""
    for what in dict.fromkeys(one.what for one in related):
        here = [one for one in related if one.what == what]
        each = ", ".join(f"{one.spearman:+.2f} ({_where(one.place)})" for one in here)
        yield f"{what} with tokens a second, Spearman's coefficient over drafts: {each}."
    for one in contests:
        yield (
            f"{_where(one.place)}: of equal parameters the best draft of one layer, "
            f"{one.designed.draft}, writes {one.gain:+.0%} tokens a second against the best of "
            f"more, {one.ordinary.draft} (the paper's designed drafts gained {PUBLISHED[0]:.0%} to "
            f"{PUBLISHED[1]:.0%})."
        )
    chains, drafts = (
        ", ".join(f"{tau:.2f} ({_where(place)})" for place, tau in taus.items())
        for taus in (told.chains, told.order)
    )
    yield (
        f"Foretold from rounds along other chains, and from what was kept on the same prompts: of "
        f"{len(told.errors)} experiments the median error is {told.median:.1%} of tokens a second, "
        f"and Kendall's tau of the order of all chains, drafts by depths, is {chains}; of the "
        f"drafts alone, each at its best depth, {drafts}."
    )


def _where(place: Place) -> str:
    return f"{place.target}, T={place.served:g}, batch {place.batch}"


def _lines(
    recipe: DraftShapeStudy,
    found: dict[Place, list[Standing]],
    said: Sequence[str],
    about: dict[str, Any],
    drawn: Sequence[tuple[str, str]],
) -> Iterator[str]:
    teaching = recipe.teaching
    tokens = teaching.steps * teaching.batch * teaching.length
    yield "# Which shape of a draft is fast, and what was foretold of it\n"
    yield (
        f"Every draft begins afresh and is taught {teaching.steps:,} steps of {teaching.batch} "
        f"rows of {teaching.length} tokens ({tokens:,} in all), the same rows in the same order. "
        f"{recipe.prompts} held-out prompts of {recipe.prompt} tokens, {recipe.tokens} new ones, "
        f"chains of {', '.join(map(str, recipe.depths))} guesses, coupled, medians of "
        f"{recipe.repetitions} interleaved repetitions beside plain decoding. A draft is called by "
        "its layers and width, and after an a by the width of its attention where that is another. "
        f"What is foretold comes of rounds along chains of {', '.join(map(str, recipe.probes))}, "
        "timed between the texts, and of what was kept of one of the deepest of these and those. "
        f"{about['device']}, {about['cores']} cores, jax {about['jax']}, "
        "float32."
    )
    yield "\n## What was found\n"
    yield from (f"- {line}" for line in said)
    for file, title in drawn:
        yield f"\n![{title}]({file})"
    for place, each in found.items():
        yield f"\n## {_where(place)}\n"
        yield from table(COLUMNS, map(_row, each))


def _row(one: Standing) -> list[str]:
    return [
        one.draft,
        f"{one.parameters:,}",
        f"{one.loss:.3f}",
        f"{one.kept:.3f}",
        f"{one.latency:.3f}",
        str(one.depth),
        f"{one.speedup:.2f}",
        f"{one.per_second:.0f}",
        str(one.foretold_depth),
        f"{one.foretold:.2f}",
    ]

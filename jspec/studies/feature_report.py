"""What a person reads of the feature-draft study."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jspec.bench.machine import machine
from jspec.bench.suite import PLAIN
from jspec.studies import feature_figures
from jspec.studies.feature_findings import (
    BASE,
    PARTS,
    WHOLE,
    FeatureFindings,
    Standing,
    depths,
    feature_findings,
)
from jspec.studies.feature_gauge import PER_ROUND, PER_SECOND, kept, on
from jspec.studies.material import AWAY, HOME
from jspec.studies.recipe import WIDE, FeatureDraftStudy
from jspec.studies.records import Duel, Records
from jspec.studies.writing import publish, signed, spread, table

NAMES = {
    "eagle": "EAGLE",
    "sampling_alone": "EAGLE + feature sampling",
    "alignment_alone": "EAGLE + partial alignment",
    "fspad": "FSPAD",
    WIDE: "EAGLE widened",
}
BRINGS = dict(
    zip(PARTS, ("feature sampling alone", "partial alignment alone", "parameters"), strict=True)
)


def write(recipe: FeatureDraftStudy, records: Records) -> list[str]:
    """Writes report, numbers and figures below `output/name`; the answers."""
    found, about = feature_findings(recipe, records), machine()
    drawn = feature_figures.draw(recipe, records, found, NAMES)
    said = list(answers(recipe, found))
    computed = {
        "differences": [duel.record() for duel in (*found.over_base, *found.over_wide)],
        "equals": [one.record() for one in found.equals],
        "standings": [one.record() for one in found.standings],
    }
    lines = _lines(recipe, records, found, said, about, drawn)
    publish(recipe, records, about, said, computed, lines)
    return said


def answers(recipe: FeatureDraftStudy, found: FeatureFindings) -> Iterator[str]:
    """The questions, each answered in a line by the numbers."""
    claims = [duel for duel in found.over_base if duel.one == WHOLE]
    yield f"FSPAD above EAGLE in tokens a round: {_count(claims)}."
    for duel in (one for one in claims if one.domain == HOME):
        place = f"T={duel.served:g}, {_tree(duel)}"
        yield f"{place}: FSPAD above EAGLE: {_verdict(duel)}."
        parts = [one for one in found.over_base if one.one in PARTS and _place(one) == _place(duel)]
        if parts:
            yield f"{place}: over EAGLE, {'; '.join(_share(one, duel) for one in parts)}."
        for rest in (one for one in found.over_wide if _place(one) == _place(duel)):
            yield f"{place}: FSPAD above EAGLE of as many parameters: {_verdict(rest)}."
    for one in found.equals:
        yield (
            f"T={one.head.served:g}: of the heads {_told(one.head)}; of the small models, nearest "
            f"to that latency, {_told(one.rival)}."
        )


def _verdict(duel: Duel) -> str:
    verdict = {1: "found", 0: "not decided", -1: "refuted"}[duel.difference.sign]
    return f"{verdict}, {signed(duel.difference, 3)} tokens a round"


def _count(duels: Sequence[Duel]) -> str:
    signs = [duel.difference.sign for duel in duels]
    return (
        f"found in {signs.count(1)} of {len(signs)} cells of temperature, tree and domain, refuted "
        f"in {signs.count(-1)}, not decided in {signs.count(0)}"
    )


def _share(part: Duel, whole: Duel) -> str:
    """What a part brings and, of a gain that there is, its share."""
    said = f"{BRINGS[part.one]} {signed(part.difference, 3)}"
    if whole.difference.sign < 1:
        return said
    return f"{said} ({part.difference.value / whole.difference.value:.0%} of FSPAD's gain)"


def _told(one: Standing) -> str:
    return (
        f"{NAMES.get(one.draft, one.draft)} on {one.tree} guesses for {one.draft_ms:.2f} ms a "
        f"round, keeps {spread(one.per_round, 2)} tokens a round and writes {one.per_second:.0f} "
        f"tokens a second ({one.speedup:.2f} of plain decoding)"
    )


def _place(duel: Duel) -> tuple[str, float, str]:
    return duel.domain, duel.served, duel.measure


def _tree(duel: Duel) -> str:
    return duel.measure.removeprefix(on(PER_ROUND, ""))


def _lines(
    recipe: FeatureDraftStudy,
    records: Records,
    found: FeatureFindings,
    said: Sequence[str],
    about: dict[str, Any],
    drawn: Sequence[tuple[str, str]],
) -> Iterator[str]:
    yield "# What feature sampling and partial alignment bring to EAGLE's head\n"
    yield _setting(recipe, about)
    yield "\n## What was found\n"
    yield from (f"- {line}" for line in said)
    for file, title in drawn:
        yield f"\n![{title}]({file})"
    for domain in (HOME, AWAY):
        yield from _rounds(recipe, records, domain)
    for domain in (HOME, AWAY):
        yield from _gains(recipe, found, domain)
    yield from _speed(recipe, records, found)
    for domain in (HOME, AWAY):
        for tree in (recipe.tree, recipe.growth):
            yield from _depths(recipe, records, domain, tree)


def _setting(recipe: FeatureDraftStudy, about: dict[str, Any]) -> str:
    teaching, head = recipe.teaching, recipe.teaching.head
    tokens = teaching.steps * teaching.batch * teaching.length
    return (
        f"Target `{teaching.target}`. Every head is taught {teaching.steps:,} steps of "
        f"{teaching.batch} rows of {teaching.length} tokens ({tokens:,} in all): the corpus by "
        f"{teaching.text.weight:g}, {teaching.answers.count} answers of the target by "
        f"{teaching.answers.weight:g}, the same rows in the same order for all kinds of a seed. "
        f"Losses: {head.features:g} of the feature, {head.logits:g} of the law; noise "
        f"{head.noise:g}; passes: {head.passes}. {recipe.seeds} seeds. `{WIDE}` has EAGLE's shape "
        "and, by a wider feed-forward, FSPAD's parameters. Coupled verification. Measured on "
        f"{recipe.prompts} prompts of each domain, {recipe.tokens} new tokens, the same for all; "
        "± is Student's 95% interval over seeds, and says nothing of other texts. The small models "
        "were taught elsewhere, and longer or shorter: they are here for their latency. "
        f"{about['device']}, {about['cores']} cores, jax {about['jax']}."
    )


def _rounds(recipe: FeatureDraftStudy, records: Records, domain: str) -> Iterator[str]:
    yield f"\n## Tokens a round, {domain}\n"
    alike = [tree for tree in (recipe.tree, recipe.growth) if tree in recipe.draft_trees]
    drafts = recipe.drafts if len(alike) == 2 else ()

    def cell(draft: str, served: float, tree: str) -> str:
        return spread(records.mean(draft, domain, served, on(PER_ROUND, tree)), 2)

    yield from _grid(recipe, (*recipe.kinds, *drafts), cell)


def _gains(recipe: FeatureDraftStudy, found: FeatureFindings, domain: str) -> Iterator[str]:
    yield f"\n## Tokens a round over EAGLE's, seed by seed, {domain}\n"
    places = {(one.one, *_place(one)): one.difference for one in found.over_base}

    def cell(kind: str, served: float, tree: str) -> str:
        return signed(places[kind, domain, served, on(PER_ROUND, tree)], 3)

    yield from _grid(recipe, [kind for kind in recipe.kinds if kind != BASE], cell)


def _grid(
    recipe: FeatureDraftStudy, rows: Iterable[str], cell: Callable[[str, float, str], str]
) -> Iterator[str]:
    """Drafts against served temperatures and the two trees."""
    places = [(served, tree) for served in recipe.served for tree in (recipe.tree, recipe.growth)]
    yield from table(
        ("", *(f"T={served:g}, {tree}" for served, tree in places)),
        ((NAMES.get(row, row), *(cell(row, *place) for place in places)) for row in rows),
    )


def _speed(recipe: FeatureDraftStudy, records: Records, found: FeatureFindings) -> Iterator[str]:
    head = (
        "draft", "tree", "parameters", "ms a round, the draft", "ms a round", "tokens a round",
        "tokens a second", "over plain",
    )  # fmt: skip
    for served in recipe.served:
        plain = records.mean(PLAIN, HOME, served, PER_SECOND).value
        yield f"\n## Latency and speed at T={served:g}, by what the draft takes\n"
        yield (
            f"One head of each kind, seed 0, and small models, a prompt at a time; plain decoding "
            f"writes {plain:.0f} tokens a second. The parameters of small models are all of "
            "theirs; heads use the target's embedding.\n"
        )
        here = [one for one in found.standings if one.served == served]
        yield from table(
            head,
            (
                (
                    NAMES.get(one.draft, one.draft),
                    one.tree,
                    f"{one.parameters:,}",
                    f"{one.draft_ms:.2f}",
                    f"{one.round_ms:.2f}",
                    spread(one.per_round, 2),
                    f"{one.per_second:.0f}",
                    f"{one.speedup:.2f}",
                )
                for one in sorted(here, key=lambda one: one.draft_ms)
            ),
        )


def _depths(recipe: FeatureDraftStudy, records: Records, domain: str, tree: str) -> Iterator[str]:
    """Acceptance by depth, guesses below the first level made of guessed features."""
    levels = depths(records, tree)
    for served in recipe.served:
        yield f"\n## Rounds that kept a node at each depth, {domain}, T={served:g}, {tree}\n"
        yield from table(
            ("", *(f"depth {depth}" for depth in levels)),
            (
                (
                    NAMES[kind],
                    *(
                        spread(records.mean(kind, domain, served, on(kept(depth), tree)))
                        for depth in levels
                    ),
                )
                for kind in recipe.kinds
            ),
        )

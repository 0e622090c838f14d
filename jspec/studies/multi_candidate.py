"""The fourth paper's question: what many candidates bring, and deciding as they grow."""

from collections.abc import Callable
from dataclasses import replace

from jax.sharding import Mesh

from jspec.bench.stops import admit
from jspec.core.tree_text import read_tree, write_tree
from jspec.distill.checkpoints import Note
from jspec.draft.target_started import LOSS
from jspec.formats.folder import claim
from jspec.plan.automatic import choose
from jspec.studies.multi_gauge import FEW, OVER, Pair, drift, method, timed
from jspec.studies.multi_recipe import MultiCandidateStudy, Way
from jspec.studies.programs import drop_programs
from jspec.studies.records import Record, Records, kept_in
from jspec.verify import coupled

HEADLINE, FASTEST = "headline", "fastest tree"
STOPPING = Way("coupled", "", "any").kind


def multi_candidate(
    recipe: MultiCandidateStudy, pair: Pair, *, mesh: Mesh | None = None, note: Note
) -> Records:
    """Times every way beside plain decoding, group by group, then the best of every kind together,
    and measures how far each drifts.

    What is done is kept below `output/name`, and not done again.
    """
    for way in (recipe.mcsd, *(way for ways in recipe.groups().values() for way in ways)):
        made = method(recipe, pair, way)
        admit(made.rule, made.drafter)
        read_tree(way.tree, FEW.context)
    record = recipe.record()
    claim(recipe.folder / "study.json", record, fixed=record, what="study")
    place = recipe.folder / "records"

    def kept(name: str, measure: Callable[[], list[Record]]) -> list[Record]:
        drop_programs()
        return kept_in(place / f"{name}.json", measure)

    note(LOSS)
    found: list[Record] = []
    for name, ways in recipe.groups().items():
        note(f"{name}: {len(ways)} ways")
        found += kept(name, lambda name=name, ways=ways: timed(recipe, pair, name, ways))
    note("the fastest static trees")
    trees = kept("fastest trees", lambda: _fastest(recipe, pair, note))
    note("the best of each kind, side by side")
    tried = Records(found)
    for tree in trees:
        ways, alone = headline(recipe, tried, tree.served, tree.draft), (tree.served,)
        at = replace(recipe, served=alone)
        found += kept(
            f"{HEADLINE} {tree.served:g}", lambda at=at, ways=ways: timed(at, pair, HEADLINE, ways)
        )
    note("how far each drifts")
    found += kept("drift", lambda: drift(recipe, pair))
    return Records([*found, *trees])


def headline(
    recipe: MultiCandidateStudy, records: Records, served: float, fastest: str
) -> list[Way]:
    """What is timed side by side at a temperature: the baseline and its tree under the coupled
    rule, the best way of every kind, the `fastest` tree, and the best coupled way to stop early,
    without slices and without stopping too."""
    best: dict[str, tuple[float, Way]] = {}
    for group, tried in recipe.groups().items():
        for way in tried:
            speed = records.mean(way.name, group, served, OVER).value
            best[way.kind] = max(best.get(way.kind, (0.0, way)), (speed, way))
    _, early = best[STOPPING]
    ways = [
        recipe.mcsd, Way("coupled", recipe.baseline), *(way for _, way in best.values()),
        Way("coupled", fastest), early._replace(sliced=False), early._replace(stop=""),
    ]  # fmt: skip
    return list(dict.fromkeys(ways))


def _fastest(recipe: MultiCandidateStudy, pair: Pair, note: Note) -> list[Record]:
    """The trees that `tree=auto` takes at each temperature, as the drafts of records."""
    found, spent = [], None
    for served in recipe.served:
        choice = choose(
            pair.draft, pair.target, pair.work,
            rule=coupled, temperature=served, tick=note, spent=spent,
        )  # fmt: skip
        # Greedy rounds throw no dice, so theirs are other costs.
        spent = choice.costs if served else None
        tree = write_tree(choice.tree)
        told = {"draft": tree, "seed": 0, "domain": FASTEST, "served": served, "measure": OVER}
        found.append(Record(**told, value=choice.timed[choice.tree]))
        drop_programs()
    return found

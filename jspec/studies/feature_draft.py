"""FSPAD's question: what feature sampling and partial alignment bring to EAGLE's head."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import jax
from jax.sharding import Mesh

from jspec.distill.checkpoints import Note
from jspec.distill.data import Document
from jspec.distill.recipe import Distillation
from jspec.distill.run import Course, course, distill, target_answers
from jspec.distill.student import HeadStudent, ModelStudent, head_of
from jspec.formats.folder import claim
from jspec.formats.huggingface import Checkpoint
from jspec.models.heads import Head
from jspec.models.initial import initial
from jspec.models.protocol import Params
from jspec.shapes import read_tree
from jspec.sharding import REPLICATED, RULES
from jspec.studies.ablation import head_for
from jspec.studies.feature_gauge import Contestant, Rounds, timings
from jspec.studies.material import Material
from jspec.studies.recipe import FeatureDraftStudy
from jspec.studies.records import Record, Records, kept_in
from jspec.tree import Tree


def feature_draft(
    recipe: FeatureDraftStudy, material: Material, *, mesh: Mesh | None = None, note: Note
) -> Records | None:
    """Teaches every head, measures them all, and times one of each kind beside plain decoding and
    small models.

    What is done is kept below `output/name`, and not done again. None if the machine was taken
    away meanwhile.
    """
    target = material.course.target
    trees = _trees(recipe, target)
    timed = [_rival(recipe, name, material.find(name)) for name in recipe.drafts]
    rounds = Rounds(recipe, target, trees, material.domains)
    record = recipe.record()
    claim(recipe.folder / "study.json", record, fixed=record, what="study")
    place = recipe.folder / "records"

    def measured(one: Contestant, seed: int) -> list[Record]:
        file = place / f"{one.name.replace('/', '_')} {seed}.json"
        return kept_in(file, lambda: rounds.records(one, seed))

    records = [found for one in timed for found in measured(one, 0)]
    note("the target writes answers, for all heads")
    answers = _answers(recipe, material)
    courses = {kind: _course(recipe, kind, target, mesh) for kind in recipe.kinds}
    total = recipe.seeds * len(recipe.kinds)
    for number, (kind, seed) in enumerate(_heads(recipe), start=1):
        note(f"head {number} of {total}: {kind}, seed {seed}")
        run = _run(recipe, kind, seed, target)
        done = distill(
            run, _seeded(courses[kind], run, mesh), material.texts, material.held_out,
            answers=answers, mesh=mesh, note=note,
        )  # fmt: skip
        if done.step < run.steps:
            return None
        head = Contestant(kind, courses[kind].student, done.params, (recipe.tree, recipe.growth))
        records += measured(head, seed)
        if not seed:
            timed.append(head)
    took = kept_in(
        place / "timing.json",
        lambda: list(timings(recipe, target, trees, material.held_out, timed)),
    )
    return Records([*records, *took])


def _trees(recipe: FeatureDraftStudy, target: Checkpoint) -> dict[str, Tree]:
    """All trees by what they are called; raises `ValueError` for a static and a grown one of other
    sizes."""
    context = target.model.config.context
    named = dict.fromkeys((recipe.tree, recipe.growth, *recipe.draft_trees))
    trees = {text: read_tree(text, context) for text in named}
    ours, grown = trees[recipe.tree], trees[recipe.growth]
    if ours.size != grown.size:
        raise ValueError(
            f"growth={recipe.growth!r} has {grown.size} nodes and tree={recipe.tree!r} has "
            f"{ours.size}: give both as many"
        )
    return trees


def _rival(recipe: FeatureDraftStudy, name: str, draft: Checkpoint) -> Contestant:
    return Contestant(
        name, ModelStudent(draft.model, draft.params), draft.params, recipe.draft_trees
    )


def _answers(recipe: FeatureDraftStudy, material: Material) -> Sequence[Document]:
    """What the target writes once, for all heads and seeds."""
    if not recipe.teaching.answers.weight:
        return ()
    folder = recipe.folder / "answers"
    return target_answers(recipe.teaching, folder, material.course, material.texts)


def _heads(recipe: FeatureDraftStudy) -> Iterator[tuple[str, int]]:
    return ((kind, seed) for seed in range(recipe.seeds) for kind in recipe.kinds)


def _run(recipe: FeatureDraftStudy, kind: str, seed: int, target: Checkpoint) -> Distillation:
    """How a head is taught."""
    head = head_for(kind, recipe.teaching.head, target.model.config)
    return replace(recipe.taught_as(kind, seed), head=head)


def _course(recipe: FeatureDraftStudy, kind: str, target: Checkpoint, mesh: Mesh | None) -> Course:
    """How heads of a kind are taught, of whichever seed."""
    run = _run(recipe, kind, 0, target)
    head = head_of(run.head, target.model.config)
    return course(run, target, HeadStudent(head, _begun(run, head, mesh)), mesh=mesh)


def _seeded(course: Course, run: Distillation, mesh: Mesh | None) -> Course:
    """The same with the first parameters of the run's seed."""
    begun = _begun(run, course.student.head, mesh)
    return course._replace(student=replace(course.student, params=begun))


def _begun(run: Distillation, head: Head, mesh: Mesh | None) -> Params:
    rules = REPLICATED if run.replicated else RULES
    return initial(head, jax.random.key(run.seed), mesh=mesh, rules=rules)

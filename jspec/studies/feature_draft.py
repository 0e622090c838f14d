"""FSPAD's question: what feature sampling and partial alignment bring to EAGLE's head."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import jax
from jax.sharding import Mesh

from jspec.config import ModelConfig
from jspec.core.tree import Growth, Tree
from jspec.core.tree_text import read_tree
from jspec.distill.checkpoints import Note
from jspec.distill.data import Document
from jspec.distill.recipe import Distillation
from jspec.distill.run import Course, course, distill, target_answers
from jspec.distill.student import HeadStudent, ModelStudent, head_of
from jspec.formats.folder import claim
from jspec.formats.huggingface import Checkpoint
from jspec.models.protocol import initial
from jspec.parallel.sharding import REPLICATED, RULES
from jspec.studies.ablation import head_for
from jspec.studies.feature_gauge import Contestant, Rounds, timings
from jspec.studies.material import Material
from jspec.studies.programs import drop_programs
from jspec.studies.recipe import FeatureDraftStudy
from jspec.studies.records import Record, Records, kept_in


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
    courses: dict[str, Course] = {}
    total = recipe.seeds * len(recipe.kinds)
    for number, (kind, seed, run) in enumerate(runs(recipe, target.model.config), start=1):
        note(f"head {number} of {total}: {kind}, seed {seed}")
        drop_programs()
        if kind not in courses:
            courses[kind] = course(run, target, _student(run, target, mesh), mesh=mesh)
        # One program serves all seeds, each with first parameters of its own.
        taught = courses[kind]._replace(student=_student(run, target, mesh))
        done = distill(
            run, taught, material.texts, material.held_out,
            shared=answers, mesh=mesh, note=note,
        )  # fmt: skip
        if done.step < run.steps:
            return None
        head = Contestant(kind, taught.student, done.params, (recipe.tree, recipe.growth))
        records += measured(head, seed)
        if not seed:
            timed.append(head)
    drop_programs()
    took = kept_in(
        place / "timing.json",
        lambda: list(timings(recipe, target, trees, material.held_out, timed)),
    )
    return Records([*records, *took])


def runs(recipe: FeatureDraftStudy, target: ModelConfig) -> Iterator[tuple[str, int, Distillation]]:
    """Each head that is taught: its kind, its seed, and its recipe."""
    for seed in range(recipe.seeds):
        for kind in recipe.kinds:
            head = head_for(kind, recipe.teaching.head, target)
            yield kind, seed, replace(recipe.taught_as(kind, seed), head=head)


def _trees(recipe: FeatureDraftStudy, target: Checkpoint) -> dict[str, Tree | Growth]:
    """All trees by what they are called; raises `ValueError` where the heads' two are not a static
    and a grown one of one size."""
    context = target.model.config.context
    named = dict.fromkeys((recipe.tree, recipe.growth, *recipe.draft_trees))
    trees = {text: read_tree(text, context) for text in named}
    static, grown = trees[recipe.tree], trees[recipe.growth]
    if not isinstance(static, Tree):
        raise ValueError(f"tree={recipe.tree!r} grows: give a static one, such as comb:4x3x2x2")
    if not isinstance(grown, Growth):
        raise ValueError(f"growth={recipe.growth!r} does not grow: give one as grow:4x4x12")
    if static.size != grown.size:
        raise ValueError(
            f"growth={recipe.growth!r} has {grown.size} nodes where tree={recipe.tree!r} has "
            f"{static.size}: give both as many"
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


def _student(run: Distillation, target: Checkpoint, mesh: Mesh | None) -> HeadStudent:
    """A head as it begins."""
    head = head_of(run.head, target.model.config)
    rules = REPLICATED if run.replicated else RULES
    return HeadStudent(head, initial(head, jax.random.key(run.seed), mesh=mesh, rules=rules))

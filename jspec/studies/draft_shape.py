"""The second paper's question: what makes a draft fast, and whether that can be foretold."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace

import jax
from jax.sharding import Mesh

from jspec.bench.drafts import ModelDraft
from jspec.distill.checkpoints import Note
from jspec.distill.run import course, distill, target_answers
from jspec.distill.student import ModelStudent
from jspec.formats.folder import claim
from jspec.formats.huggingface import Checkpoint
from jspec.models.protocol import initial
from jspec.models.transformer import transformer
from jspec.studies.material import Material
from jspec.studies.programs import drop_programs
from jspec.studies.records import Record, Records, kept_in
from jspec.studies.shape_gauge import Gauge
from jspec.studies.shape_recipe import DraftShapeStudy, Pupil, folder_of

# What makes the material of one of the recipe's targets.
Find = Callable[[str], Material]


def draft_shape(
    recipe: DraftShapeStudy, find: Find, *, mesh: Mesh | None = None, note: Note
) -> Records | None:
    """Teaches drafts of every shape by every target, and measures and foretells each.

    What is done is kept below `output/name`, and not done again. None if the machine was taken
    away meanwhile.
    """
    record = recipe.record()
    claim(recipe.folder / "study.json", record, fixed=record, what="study")
    found: list[Record] = []
    for target in recipe.targets:
        material = find(target)
        drafts = []
        for pupil, draft in _taught(recipe, target, material, mesh, note):
            if draft is None:
                return None
            drafts.append((pupil, draft))
        drop_programs()
        gauge = Gauge(recipe, target, material)
        for number, (pupil, draft) in enumerate(drafts, start=1):
            note(f"measuring {number} of {len(drafts)}: {pupil.name}")
            file = recipe.folder / "records" / folder_of(target) / f"{pupil.name}.json"
            found += kept_in(file, functools.partial(gauge.records, pupil, draft))
            drop_programs()
    return Records(found)


def _taught(
    recipe: DraftShapeStudy, target: str, material: Material, mesh: Mesh | None, note: Note
) -> Iterator[tuple[Pupil, ModelDraft | None]]:
    """Each draft, once it has learned; None in its place if there was no time."""
    teacher = material.course.target
    pupils = recipe.pupils(target, teacher.model.config)
    answers = ()
    if recipe.teaching.answers.weight:
        note(f"{target} writes answers, for all drafts")
        place = recipe.folder / folder_of(target) / "answers"
        answers = target_answers(
            replace(recipe.teaching, target=target), place, material.course, material.texts
        )
    for number, pupil in enumerate(pupils, start=1):
        note(f"draft {number} of {len(pupils)}: {pupil.name}")
        run = recipe.taught_as(target, pupil)
        model = transformer(pupil.config, remat=run.remat)
        student = ModelStudent(model, initial(model, jax.random.key(run.seed), mesh=mesh))
        drop_programs()
        done = distill(
            run, course(run, teacher, student, mesh=mesh), material.texts, material.held_out,
            shared=answers, mesh=mesh, note=note,
        )  # fmt: skip
        if done.step < run.steps:
            yield pupil, None
            return
        model, place = transformer(pupil.config), recipe.folder / run.name
        yield pupil, ModelDraft(Checkpoint(model, done.params, (), place, teacher.family))

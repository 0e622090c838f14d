"""`jspec study`: the papers' experiments."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tyro.conf import Positional

from jspec.cli.contenders import Planned, contender, planned_target
from jspec.cli.distill import read_lesson
from jspec.cli.held_out import held_out_work
from jspec.cli.overrides import override
from jspec.cli.pair import read_draft, read_target
from jspec.cli.placement import placed
from jspec.cli.recipes import read_recipe
from jspec.cli.screen import console, emit
from jspec.cli.verb import DONE, FAILED, Verb

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jspec.distill.checkpoints import Note
    from jspec.distill.recipe import Distillation, Text
    from jspec.studies.gate_recipe import CompileGate
    from jspec.studies.material import Material
    from jspec.studies.multi_gauge import Pair
    from jspec.studies.multi_recipe import MultiCandidateStudy
    from jspec.studies.recipe import Study as Recipe
    from jspec.studies.records import Records
    from jspec.studies.shape_recipe import DraftShapeStudy


class Experiment(NamedTuple):
    """A study: its recipe, what it is made of, what measures, what writes that down and says what
    was found, and whether all is as it should be, where it is a test."""

    recipe: "type[Recipe]"
    material: "Callable[..., Any]"
    run: "Callable[..., Records | None]"
    write: "Callable[[Any, Records], list[str]]"
    passed: "Callable[[Any], bool]" = lambda found: True


def experiments() -> dict[str, Experiment]:
    """All of them, by name."""
    from jspec.studies import feature_report, gate_report, multi_report, report, shape_report
    from jspec.studies.compile_gate import compile_gate
    from jspec.studies.draft_shape import draft_shape
    from jspec.studies.feature_draft import feature_draft
    from jspec.studies.gate_recipe import CompileGate
    from jspec.studies.multi_candidate import multi_candidate
    from jspec.studies.multi_recipe import MultiCandidateStudy
    from jspec.studies.recipe import FeatureDraftStudy, TemperatureStudy
    from jspec.studies.shape_recipe import DraftShapeStudy
    from jspec.studies.temperature import temperature

    return {
        "temperature": Experiment(TemperatureStudy, _material, temperature, report.write),
        "feature-draft": Experiment(
            FeatureDraftStudy, _material, feature_draft, feature_report.write
        ),
        "multi-candidate": Experiment(
            MultiCandidateStudy, _pair, multi_candidate, multi_report.write
        ),
        "draft-shape": Experiment(DraftShapeStudy, _targets, draft_shape, shape_report.write),
        "compile-gate": Experiment(
            CompileGate, _parts, compile_gate, gate_report.write, gate_report.passed
        ),
    }


@dataclass(kw_only=True)
class Study(Verb):
    """Run an experiment, on the zoo if no config is given; goes on from where it stopped."""

    study: Positional[
        Literal["temperature", "feature-draft", "multi-candidate", "draft-shape", "compile-gate"]
    ]
    """Drafts taught at some temperatures and served at others; heads that read the target's
    features, with each of FSPAD's changes alone and both; many candidates, decided as they grow;
    drafts of many shapes, and what was foretold of them; or whether launches compile for TPUs."""
    words: Positional[tuple[str, ...]] = ()
    """A Python file whose `config()` returns the study, then fields to change, dotted: seeds=5
    teaching.steps=1000 served="0 1"."""

    def run(self) -> int:
        from jspec.distill.preemption import leaving
        from jspec.parallel.sharding import read_mesh

        experiment = experiments()[self.study]
        recipe = self._recipe(experiment.recipe)
        mesh = read_mesh(recipe.mesh)
        screen = console()

        def note(text: str) -> None:
            screen.print(text, soft_wrap=True)

        with leaving(note), placed(mesh):
            try:
                made_of = experiment.material(recipe, mesh, note)
                records = experiment.run(recipe, made_of, mesh=mesh, note=note)
            except FloatingPointError as error:
                note(f"{error}: what was measured before is kept")
                return FAILED
        if records is None:
            note(f"{recipe.name}: stopped, and saved; the same command goes on with it")
            return DONE
        found = experiment.write(recipe, records)
        if self.json:
            emit({"name": recipe.name, "folder": str(recipe.folder), "findings": found})
        else:
            note("\n".join(found))
            note(f"{recipe.name}: written to {recipe.folder / 'report.md'}")
        return DONE if experiment.passed(records) else FAILED

    def _recipe(self, kind: "type[Recipe]") -> "Recipe":
        given = [word for word in self.words if "=" not in word]
        changes = [word for word in self.words if "=" in word]
        if len(given) > 1:
            raise ValueError(f"{' '.join(given)}: give one config, and changes as field=value")
        return override(read_recipe(Path(given[0]), kind) if given else kind(), changes)


def _material(recipe: "Recipe", mesh: "Mesh | None", note: "Note") -> "Material":
    return _taught_by(recipe, recipe.teaching, recipe.elsewhere, mesh, note)


def _targets(
    recipe: "DraftShapeStudy", mesh: "Mesh | None", note: "Note"
) -> "Callable[[str], Material]":
    """What makes the material of each target, one at a time."""
    from jspec.distill.recipe import Text
    from jspec.zoo.lessons import PROSE

    def find(target: str) -> "Material":
        config = planned_target(target, "float32", weights=False).model.config
        first, *_ = recipe.pupils(target, config)
        teaching = replace(recipe.teaching, target=target, model=first.config)
        return _taught_by(recipe, teaching, Text(source=PROSE), mesh, note)

    return find


def _parts(recipe: "CompileGate", mesh: "Mesh | None", note: "Note") -> "Callable[..., Any]":
    """What makes a draft of a name for a target's shape."""
    return lambda name, target: contender(name, Planned(target, None), "bfloat16").part


def _taught_by(
    recipe: "Recipe", teaching: "Distillation", other: "Text", mesh: "Mesh | None", note: "Note"
) -> "Material":
    from jspec.distill.run import course
    from jspec.studies.material import Material
    from jspec.zoo.lessons import elsewhere

    teaching = replace(teaching, name=recipe.name, output=recipe.output)
    lesson = read_lesson(teaching, mesh, note)
    target = lesson.target
    end, cache = target.end_of_text[0], recipe.folder / "data"
    return Material(
        course(teaching, target, lesson.student, mesh=mesh),
        lesson.texts,
        lesson.held_out,
        elsewhere(other, target.tokenizer, end, cache=cache),
        lambda name: read_draft(name, target, "float32", mesh),
    )


def _pair(recipe: "MultiCandidateStudy", mesh: "Mesh | None", note: "Note") -> "Pair":
    from jspec.bench.drafts import ModelDraft
    from jspec.studies.multi_gauge import Pair

    target = read_target(recipe.target, "float32", mesh)
    draft = ModelDraft(read_draft(recipe.draft, target, "float32", mesh))
    work = held_out_work(
        target,
        prompts=recipe.prompts,
        prompt_length=recipe.prompt,
        batch=1,
        tokens=recipe.tokens,
        seed=recipe.seed,
    )
    return Pair(target, draft, work)

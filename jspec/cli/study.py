"""`jspec study`: the papers' experiments."""

import importlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from jspec.bench.suite import held_out_work
from jspec.cli.screen import console, emit
from jspec.cli.verb import DONE, FAILED, Verb
from jspec.plan.drafts import PlannedTarget, planned_draft, planned_target
from jspec.training.config_files import override, read_recipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from jax.sharding import Mesh

    from jspec.studies.common.measure import Material
    from jspec.studies.common.recipe import Experiment, TrainingStudy
    from jspec.studies.common.recipe import Study as Recipe
    from jspec.studies.compile_gate.measure import FindDraft
    from jspec.studies.draft_shape.recipe import DraftShapeStudy
    from jspec.studies.multi_candidate.measure import Pair
    from jspec.studies.multi_candidate.recipe import MultiCandidateStudy
    from jspec.training.checkpoints import Note
    from jspec.training.recipe import Distillation, Text


@dataclass(kw_only=True)
class Study(Verb):
    """Run an experiment, on the zoo if no config is given; resumes from where it stopped."""

    study: Positional[
        Literal["temperature", "feature-draft", "multi-candidate", "draft-shape", "compile-gate"]
    ]
    """Drafts trained at some temperatures and served at others; heads that read the target's
    features, with each of FSPAD's changes alone and both; many candidates, with decisions to stop;
    drafts of many shapes, and what was predicted of them; or whether launches compile for TPUs."""
    words: Positional[tuple[str, ...]] = ()
    """A Python file whose `config()` returns the study, then fields to change, dotted: seeds=5
    training.steps=1000 temperatures="0 1"."""

    def run(self) -> int:
        """As `Verb.run`."""
        from jspec.parallel.sharding import on_mesh, read_mesh
        from jspec.training.checkpoints import exit_on_sigterm

        experiment = _experiment(self.study)
        recipe = self._recipe(experiment.recipe)
        mesh = read_mesh(recipe.mesh)
        screen = console()

        def note(text: str) -> None:
            screen.print(text, soft_wrap=True)

        with exit_on_sigterm(note), on_mesh(mesh):
            try:
                material = MATERIALS[self.study](recipe, mesh, note)
                measured = experiment.run(recipe, material, mesh=mesh, note=note)
            except FloatingPointError as error:
                note(f"{error}: what was measured before is kept")
                return FAILED
        if measured is None:
            note(f"{recipe.name}: stopped, and saved; the same command resumes it")
            return DONE
        found = experiment.write(recipe, measured)
        if self.json:
            emit({"name": recipe.name, "folder": str(recipe.folder), "findings": found})
        else:
            note("\n".join(found))
            note(f"{recipe.name}: written to {recipe.folder / 'report.md'}")
        return DONE if experiment.passed(measured) else FAILED

    def _recipe(self, kind: "type[Recipe]") -> "Recipe":
        files = [word for word in self.words if "=" not in word]
        changes = [word for word in self.words if "=" in word]
        if len(files) > 1:
            raise ValueError(f"{' '.join(files)}: give one config, and changes as field=value")
        return override(read_recipe(Path(files[0]), kind) if files else kind(), changes)  # type: ignore[call-arg]


def _experiment(name: str) -> "Experiment":
    """A study by its name."""
    folder = name.replace("-", "_")
    return importlib.import_module(f"jspec.studies.{folder}.report").EXPERIMENT


def _training(recipe: "TrainingStudy", mesh: "Mesh | None", note: "Note") -> "Material":
    return _trained_by(recipe, recipe.training, recipe.elsewhere, mesh, note)


def _targets(
    recipe: "DraftShapeStudy", mesh: "Mesh | None", note: "Note"
) -> "Callable[[str], Material]":
    """What makes the material of each target, one at a time."""
    from jspec.training.recipe import Text
    from jspec.training.text_data import PROSE

    def find(target: str) -> "Material":
        config = planned_target(target, "float32", weights=False).model.config
        first, *_ = recipe.shapes(target, config)
        training = replace(recipe.training, target=target, model=first.config)
        return _trained_by(recipe, training, Text(source=PROSE), mesh, note)

    return find


def _shapes(*_: object) -> "FindDraft":
    """What makes a draft of a name for a target's shape."""
    return lambda name, target: planned_draft(name, PlannedTarget(target, None), "bfloat16").part


def _pair(recipe: "MultiCandidateStudy", mesh: "Mesh | None", _: "Note") -> "Pair":
    from jspec.draft.draft import load_draft
    from jspec.studies.multi_candidate.measure import Pair
    from jspec.training.loading import load_target

    target = load_target(recipe.target, "float32", mesh)
    work = held_out_work(
        target,
        prompts=recipe.prompts,
        prompt_length=recipe.prompt_length,
        batch=1,
        tokens=recipe.max_new_tokens,
        seed=recipe.seed,
    )
    return Pair(load_draft(recipe.draft, target, mesh=mesh), work)


def _trained_by(
    recipe: "Recipe", training: "Distillation", other: "Text", mesh: "Mesh | None", note: "Note"
) -> "Material":
    from jspec.draft.draft import load_draft
    from jspec.studies.common.measure import Material
    from jspec.training.run import load_inputs, make_setup
    from jspec.training.text_data import load_out_of_domain

    inputs = load_inputs(replace(training, name=recipe.name, output=recipe.output), mesh, note)
    target = inputs.target
    end, cache = target.stop_token_ids[0], recipe.folder / "data"
    return Material(
        make_setup(training, inputs.student, mesh=mesh),
        inputs.texts,
        inputs.held_out,
        load_out_of_domain(other, target.tokenizer, end, cache=cache),
        lambda name: load_draft(name, target, mesh=mesh),
    )


# What finds the material of each study.
MATERIALS: "dict[str, Callable[..., Any]]" = {
    "temperature": _training,
    "feature-draft": _training,
    "multi-candidate": _pair,
    "draft-shape": _targets,
    "compile-gate": _shapes,
}

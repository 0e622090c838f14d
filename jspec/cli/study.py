"""`jspec study`: the papers' experiments."""

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jax.sharding import Mesh
from tyro.conf import Positional

from jspec.bench.suite import held_out_work
from jspec.cli.verb import DONE, FAILED, Verb, emit, say
from jspec.draft.draft import load_draft
from jspec.parallel.sharding import on_mesh, read_mesh
from jspec.plan.drafts import PlannedTarget, planned_draft, planned_target
from jspec.training.checkpoints import exit_on_sigterm
from jspec.training.config_files import override, read_recipe
from jspec.training.loading import load_target
from jspec.training.recipe import Distillation, Text
from jspec.training.run import DATA, load_inputs, make_setup
from jspec.training.text_data import PROSE, load_out_of_domain

# Scipy's statistics, which studies read, take a while to import.
if TYPE_CHECKING:
    from jspec.studies.common.measure import Material
    from jspec.studies.common.recipe import Study as Recipe
    from jspec.studies.common.recipe import TrainingStudy
    from jspec.studies.compile_gate.measure import FindDraft
    from jspec.studies.draft_shape.recipe import DraftShapeStudy
    from jspec.studies.multi_candidate.measure import Pair
    from jspec.studies.multi_candidate.recipe import MultiCandidateStudy


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
        """Measures and writes what was found."""
        folder = self.study.replace("-", "_")
        experiment = importlib.import_module(f"jspec.studies.{folder}.report").EXPERIMENT
        recipe = self._recipe(experiment.recipe)
        mesh = read_mesh(recipe.mesh)
        with exit_on_sigterm(say), on_mesh(mesh):
            try:
                material = MATERIALS[self.study](recipe, mesh)
                measured = experiment.run(recipe, material, mesh=mesh, note=say)
            except FloatingPointError as error:
                say(f"{error}: what was measured before is kept")
                return FAILED
        if measured is None:
            say(f"{recipe.name}: stopped, and saved; the same command resumes it")
            return DONE
        found = experiment.write(recipe, measured)
        if self.json:
            emit({"name": recipe.name, "folder": str(recipe.folder), "findings": found})
        else:
            say(*found, f"{recipe.name}: written to {recipe.folder / 'report.md'}")
        return DONE if experiment.passed(measured) else FAILED

    def _recipe(self, kind: "type[Recipe]") -> "Recipe":
        files = [word for word in self.words if "=" not in word]
        changes = [word for word in self.words if "=" in word]
        if len(files) > 1:
            raise ValueError(f"{' '.join(files)}: give one config, and changes as field=value")
        return override(read_recipe(Path(files[0]), kind) if files else kind(), changes)  # type: ignore[call-arg]


def _training(recipe: "TrainingStudy", mesh: Mesh | None) -> "Material":
    return _trained_by(recipe, recipe.training, recipe.elsewhere, mesh)


def _targets(recipe: "DraftShapeStudy", mesh: Mesh | None) -> "Callable[[str], Material]":
    """What makes the material of each target, one at a time."""

    def find(target: str) -> "Material":
        config = planned_target(target, "float32", weights=False).model.config
        first, *_ = recipe.shapes(target, config)
        training = replace(recipe.training, target=target, model=first.config)
        return _trained_by(recipe, training, Text(source=PROSE), mesh)

    return find


def _shapes(*_: object) -> "FindDraft":
    """What makes a draft of a name for a target's shape."""
    return lambda name, target: planned_draft(name, PlannedTarget(target, None), "bfloat16").part


def _pair(recipe: "MultiCandidateStudy", mesh: Mesh | None) -> "Pair":
    from jspec.studies.multi_candidate.measure import Pair

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
    recipe: "Recipe", training: Distillation, other: Text, mesh: Mesh | None
) -> "Material":
    from jspec.studies.common.measure import Material

    inputs = load_inputs(replace(training, name=recipe.name, output=recipe.output), mesh, say)
    target = inputs.target
    elsewhere = load_out_of_domain(
        other, target.tokenizer, target.stop_token_ids[0],
        vocab_size=target.model.config.vocab_size, cache=recipe.folder / DATA,
    )  # fmt: skip
    setup = make_setup(training, inputs.student, mesh=mesh)
    find = functools.partial(load_draft, target=target, mesh=mesh)
    return Material(setup, inputs.texts, inputs.held_out, elsewhere, find)


# What finds the material of each study.
MATERIALS: dict[str, Callable[..., Any]] = {
    "temperature": _training,
    "feature-draft": _training,
    "multi-candidate": _pair,
    "draft-shape": _targets,
    "compile-gate": _shapes,
}

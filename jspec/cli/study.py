"""`jspec study`: the papers' experiments."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from jspec.cli.distill import read_lesson
from jspec.cli.overrides import override
from jspec.cli.placement import placed
from jspec.cli.recipes import read_recipe
from jspec.cli.screen import console, emit
from jspec.cli.verb import DONE, FAILED, Verb


@dataclass(kw_only=True)
class Study(Verb):
    """Run an experiment, on the zoo if no config is given; goes on from where it stopped."""

    study: Positional[Literal["temperature"]]
    """Drafts taught at some temperatures, and served at others."""
    words: Positional[tuple[str, ...]] = ()
    """A Python file whose `config()` returns the study, then fields to change, dotted: seeds=5
    teaching.steps=1000 served="0 1"."""

    def run(self) -> int:
        from jspec.distill.preemption import leaving
        from jspec.distill.run import course
        from jspec.sharding import read_mesh
        from jspec.studies.recipe import TemperatureStudy
        from jspec.studies.report import answers, write
        from jspec.studies.temperature import temperature
        from jspec.zoo.lessons import elsewhere

        given = [word for word in self.words if "=" not in word]
        changes = [word for word in self.words if "=" in word]
        if len(given) > 1:
            raise ValueError(f"{' '.join(given)}: give one config, and changes as field=value")
        recipe = read_recipe(Path(given[0]), TemperatureStudy) if given else TemperatureStudy()
        recipe = override(recipe, changes)
        mesh = read_mesh(recipe.teaching.mesh)
        screen = console()

        def note(text: str) -> None:
            screen.print(text, soft_wrap=True)

        with leaving(note), placed(mesh):
            teaching = replace(recipe.teaching, name=recipe.name, output=recipe.output)
            lesson = read_lesson(teaching, mesh, note)
            target = lesson.target
            away = elsewhere(
                recipe.elsewhere,
                target.tokenizer,
                target.end_of_text[0],
                cache=recipe.folder / "data",
            )
            compiled = course(teaching, target, lesson.student, mesh=mesh)
            try:
                records = temperature(
                    recipe, compiled, lesson.texts, lesson.held_out, away, mesh=mesh, note=note
                )
            except FloatingPointError as error:
                note(f"{error}: what was measured before is kept")
                return FAILED
        if records is None:
            note(f"{recipe.name}: stopped, and saved; the same command goes on with it")
            return DONE
        found = list(answers(recipe, write(recipe, records)))
        if self.json:
            emit({"name": recipe.name, "folder": str(recipe.folder), "findings": found})
        else:
            note("\n".join(found))
            note(f"{recipe.name}: written to {recipe.folder / 'report.md'}")
        return DONE

"""`jspec train`: one of `configs/`, with changes from the command line."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from jspec.cli.screen import console, emit
from jspec.cli.verb import DONE, FAILED, Verb


@dataclass(kw_only=True)
class Train(Verb):
    """Train a model from a recipe; goes on from the newest checkpoint of its run."""

    config: Positional[Path]
    """A Python file with `def config() -> Pretraining`, such as configs/zoo_wide.py."""
    overrides: Positional[tuple[str, ...]] = ()
    """Fields to change, dotted: steps=100 model.layers=2."""

    def run(self) -> int:
        from jspec.cli.overrides import override
        from jspec.cli.recipes import read_recipe
        from jspec.distill.recipe import Pretraining

        recipe = override(read_recipe(self.config, Pretraining), self.overrides)
        from jspec.zoo.training import make

        screen = console()
        try:
            folder = make(recipe, lambda note: screen.print(note, soft_wrap=True))
        except FloatingPointError as error:
            screen.print(f"{error}: the last good checkpoint is kept", soft_wrap=True)
            return FAILED
        if self.json:
            emit({"name": recipe.name, "steps": recipe.steps, "folder": str(folder)})
        else:
            screen.print(f"{recipe.name}: written to {folder}", soft_wrap=True)
        return DONE

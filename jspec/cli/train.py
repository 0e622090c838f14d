"""`jspec train`: one of `configs/`, with changes from the command line."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from jspec.cli.screen import console, emit
from jspec.cli.verb import DONE, FAILED, Verb

if TYPE_CHECKING:
    from jspec.distill.recipe import Recipe


@dataclass(kw_only=True)
class Train(Verb):
    """Train a model from a recipe; goes on from the newest checkpoint of its run."""

    config: Positional[Path]
    """A Python file with `def config() -> Recipe`, such as configs/zoo_wide.py."""
    overrides: Positional[tuple[str, ...]] = ()
    """Fields to change, dotted: steps=100 model.layers=2."""

    def run(self) -> int:
        from jspec.cli.overrides import override

        recipe = override(read_recipe(self.config), self.overrides)
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


def read_recipe(file: Path) -> "Recipe":
    """What the file's `config()` returns."""
    import runpy

    from jspec.distill.recipe import Recipe

    if not file.is_file():
        raise FileNotFoundError(f"config={str(file)!r}: no such file; give configs/NAME.py")
    try:
        config = runpy.run_path(str(file)).get("config")
        recipe = config() if callable(config) else None
    # The file is somebody's program, and may raise or exit as it likes.
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"config={str(file)!r} does not run ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(recipe, Recipe):
        raise ValueError(f"config={str(file)!r} has no `def config() -> Recipe`: write one")
    return recipe

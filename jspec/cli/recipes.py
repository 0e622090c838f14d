"""Recipes out of the files of `configs/`."""

import runpy
from pathlib import Path
from typing import TypeVar

Kind = TypeVar("Kind")


def read_recipe(file: Path, kind: type[Kind]) -> Kind:
    """What the file's `config()` returns, a recipe of that kind."""
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
    if not isinstance(recipe, kind):
        raise ValueError(
            f"config={str(file)!r} has no `def config() -> {kind.__name__}`: write one, or use the "
            "command that its kind of recipe is for"
        )
    return recipe

"""What commands that train share: a recipe, its changes, the launch, and how a run ends."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tyro.conf import Positional

from jspec.cli.placement import joined, placed
from jspec.cli.recipes import read_recipe
from jspec.cli.screen import console, emit
from jspec.cli.verb import DONE, FAILED, Verb

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jspec.distill.recipe import Recipe

Kind = TypeVar("Kind", bound="Recipe")
# Trains by a recipe, on a mesh; says where the model was written, or nothing if it is not done.
Work = Callable[[Kind, "Mesh | None", Callable[[str], None]], Path | None]


@dataclass(kw_only=True)
class Training(Verb):
    """A run by one of `configs/`."""

    config: Positional[Path]
    """A Python file whose `config()` returns a recipe, such as those of configs/."""
    overrides: Positional[tuple[str, ...]] = ()
    """Fields to change, dotted: steps=100 model.layers=2."""
    distributed: bool = False
    """Join the other processes of a launch, which SLURM, a TPU pod or JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID tell of."""

    def train(self, kind: type[Kind], work: Work[Kind]) -> int:
        """Reads a recipe of that kind, and follows it."""
        from jspec.cli.overrides import override
        from jspec.distill.preemption import leaving
        from jspec.parallel.sharding import read_mesh

        recipe = override(read_recipe(self.config, kind), self.overrides)
        first = joined() if self.distributed else True
        mesh = read_mesh(recipe.mesh)
        screen = console()

        def note(text: str) -> None:
            if first:
                screen.print(text, soft_wrap=True)

        try:
            with leaving(note), placed(mesh):
                folder = work(recipe, mesh, note)
        except FloatingPointError as error:
            note(f"{error}: the last good checkpoint is kept")
            return FAILED
        if self.json and first:
            written = None if folder is None else str(folder)
            emit({"name": recipe.name, "steps": recipe.steps, "folder": written})
        elif folder is None:
            note(f"{recipe.name}: stopped, and saved; the same command goes on with it")
        else:
            note(f"{recipe.name}: written to {folder}")
        return DONE

"""What the commands that train have in common: a recipe, its changes, the launch, and the end."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from jspec.cli.placement import joined
from jspec.cli.screen import console, emit
from jspec.cli.verb import DONE, FAILED, Verb

if TYPE_CHECKING:
    from jspec.training.recipe import Recipe


@dataclass(kw_only=True)
class Training(Verb):
    """A run by one of `configs/`."""

    config: Positional[Path]
    """A Python file whose `config()` returns a recipe, such as those of configs/."""
    overrides: Positional[tuple[str, ...]] = ()
    """Fields to change, dotted: steps=100 losses.forward_kl=0.5."""
    distributed: bool = False
    """Join the other processes of a launch, which SLURM, a TPU pod or JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID describe."""

    def train(self, kind: "type[Recipe]", run: Callable[..., Any]) -> int:
        """Reads a recipe of that kind, and runs it."""
        from jspec.training.checkpoints import exit_on_sigterm
        from jspec.training.config_files import find_recipe, read_changes

        recipe = find_recipe(self.config, kind, read_changes(self.overrides))
        first = joined() if self.distributed else True
        screen = console()

        def note(text: str) -> None:
            if first:
                screen.print(text, soft_wrap=True)

        try:
            with exit_on_sigterm(note):
                done = run(recipe, note=note)
        except FloatingPointError as error:
            note(f"{error}: the last good checkpoint is kept")
            return FAILED
        if self.json and first:
            written = None if done.folder is None else str(done.folder)
            emit(
                {
                    "name": recipe.name,
                    "steps": recipe.steps,
                    "folder": written,
                    "metrics": done.metrics,
                }
            )
        elif done.folder is None:
            note(f"{recipe.name}: stopped, and saved; run the same command again to resume")
        else:
            note(f"{recipe.name}: written to {done.folder}")
        return DONE

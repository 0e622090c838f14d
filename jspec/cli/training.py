"""`jspec train` and `jspec distill`: a model from scratch, or a draft on its target's distribution,
as one of `configs/` says."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from tyro.conf import Positional

from jspec.cli.verb import DONE, FAILED, Distributed, Verb, emit
from jspec.parallel.launch import join
from jspec.training.checkpoints import exit_on_sigterm
from jspec.training.config_files import find_recipe, read_changes
from jspec.training.loop import print_note
from jspec.training.pretraining import pretrain
from jspec.training.recipe import Distillation, Pretraining, Recipe
from jspec.training.run import distill


@dataclass(kw_only=True)
class Training(Verb):
    """A run by one of `configs/`."""

    config: Positional[Path]
    """A Python file whose `config()` returns a recipe, such as those of configs/."""
    overrides: Positional[tuple[str, ...]] = ()
    """Fields to change, dotted: steps=100 losses.forward_kl=0.5."""
    distributed: Distributed = False

    def train(self, kind: type[Recipe], run: Callable[..., Any]) -> int:
        """Reads a recipe of that kind, and runs it."""
        recipe = find_recipe(self.config, kind, read_changes(self.overrides))
        if self.distributed:
            join()
        try:
            with exit_on_sigterm(print_note):
                done = run(recipe)
        except FloatingPointError as error:
            print_note(f"{error}: the last good checkpoint is kept")
            return FAILED
        if self.json and jax.process_index() == 0:
            folder = None if done.folder is None else str(done.folder)
            about = {"name": recipe.name, "steps": recipe.steps, "folder": folder}
            emit({**about, "metrics": done.metrics})
        elif done.folder is None:
            print_note(f"{recipe.name}: stopped, and saved; run the same command again to resume")
        else:
            print_note(f"{recipe.name}: written to {done.folder}")
        return DONE


@dataclass(kw_only=True)
class Train(Training):
    """Train a model from a recipe; resumes from the newest checkpoint of its run."""

    def run(self) -> int:
        """Follows the recipe."""
        return self.train(Pretraining, pretrain)


@dataclass(kw_only=True)
class Distill(Training):
    """Train a draft on its target's distribution; resumes from the newest checkpoint of its run."""

    def run(self) -> int:
        """Follows the recipe."""
        return self.train(Distillation, distill)

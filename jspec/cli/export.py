"""`jspec export`: a model of the zoo, a run's draft, or anything that can be read, as a folder."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from jspec.cli.distill import lacks_tokens, read_student, with_tokens
from jspec.cli.pair import read_model
from jspec.cli.transfer import Transfer

if TYPE_CHECKING:
    from jspec.distill.recipe import Distillation
    from jspec.formats.heads import HeadCheckpoint
    from jspec.formats.huggingface import Checkpoint


@dataclass(kw_only=True)
class Export(Transfer):
    """Write a model as a Hugging Face folder, which transformers and vLLM read, or a head in a
    layout that its other readers know."""

    name: Positional[str]
    """target, wide, distilled, eagle or fspad of the zoo; a folder, or a hub name; or the folder
    of a distillation, such as runs/NAME, which may still be under way."""
    folder: Positional[Path]
    """Where to. A model that is there is replaced; a folder of anything else is refused."""
    step: str = ""
    """Of a distillation: newest (if nothing is said), best, or the number of a checkpoint."""

    def run(self) -> int:
        from jspec import zoo
        from jspec.distill.loop import RECIPE

        source = zoo.PREFIX + self.name if self.name in zoo.NAMES else self.name
        run = Path(self.name).expanduser()
        if (run / RECIPE).is_file():
            return self._export(run, source)
        if self.step:
            raise ValueError(
                f"step={self.step!r}: {self.name} is no distillation's folder, which has a {RECIPE}"
            )
        return self.transfer("name", source, self.folder)

    def _export(self, run: Path, source: str) -> int:
        """Writes the draft of a distillation."""
        from jspec.formats.heads import check_target

        recipe = _recipe(run)
        draft = _of_run(run, recipe, self.step or "newest")
        if recipe.head is None:
            return self.write_model(source, draft, self.folder)
        named = replace(self, target=self.target or recipe.target)
        target = read_model("target", named.target, self.dtype)
        try:
            check_target(draft.head, target.model, target.params)
        except ValueError as error:
            raise ValueError(f"target={named.target!r}: {error}") from None
        return named.write_head(source, draft, target, self.folder)


def _recipe(run: Path) -> "Distillation":
    """What a run noted of itself."""
    from jspec.distill.loop import RECIPE
    from jspec.distill.recipe import distillation_of
    from jspec.formats.folder import read_json

    try:
        return distillation_of(read_json(run / RECIPE))
    except ValueError as error:
        raise ValueError(f"name={str(run)!r}: {RECIPE}: {error}") from error


def _of_run(run: Path, recipe: "Distillation", step: str) -> "Checkpoint | HeadCheckpoint":
    """The draft as a checkpoint of a distillation has it."""
    from jspec.distill import checkpoints
    from jspec.distill.loop import CHECKPOINTS
    from jspec.distill.optimizer import optimizer
    from jspec.distill.step import start

    draft = read_student(recipe)
    if lacks_tokens(draft):
        draft = with_tokens(draft, run)
    state = start(draft.params, optimizer=optimizer(recipe))
    place = (run / CHECKPOINTS).absolute()
    return replace(draft, params=checkpoints.read(place, step, state).params)

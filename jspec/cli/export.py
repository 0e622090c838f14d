"""`jspec export`: a model of the zoo, a run's draft, or anything that can be read, as a folder."""

from dataclasses import dataclass, replace
from pathlib import Path

from tyro.conf import Positional

from jspec.cli.models import load_model
from jspec.cli.transfer import Transfer


@dataclass(kw_only=True)
class Export(Transfer):
    """Write a model as a Hugging Face folder, which transformers and vLLM read, or a head in a
    layout that its other readers know."""

    name: Positional[str]
    """target, wide, distilled, eagle or fspad of the zoo; a folder, or a hub name; or the folder
    of a distillation, such as runs/NAME, which may still be running."""
    folder: Positional[Path]
    """Where to. A model that is there is replaced; a folder of anything else is refused."""
    step: str = ""
    """Of a distillation: newest (the default), best, or the number of a checkpoint."""

    def run(self) -> int:
        """Writes the folder."""
        from jspec import zoo
        from jspec.training.loop import RECIPE

        source = zoo.ZOO + self.name if self.name in zoo.NAMES else self.name
        run = Path(self.name).expanduser()
        if (run / RECIPE).is_file():
            return self._export(run, source)
        if self.step:
            raise ValueError(
                f"step={self.step!r}: {self.name} is not the folder of a distillation, which has a "
                f"{RECIPE}"
            )
        return self.transfer("name", source, self.folder)

    def _export(self, run: Path, source: str) -> int:
        """Writes the draft of a distillation."""
        from jspec.formats.heads import HeadCheckpoint, check_target
        from jspec.training.run import load_run_draft

        recipe, draft = load_run_draft(run, self.step or "newest")
        if not isinstance(draft, HeadCheckpoint):
            return self.write_model(source, draft, self.folder)
        target_name = self.target or recipe.target
        target = load_model("target", target_name, self.dtype)
        try:
            check_target(draft.head, target.model, target.params)
        except ValueError as error:
            raise ValueError(f"target={target_name!r}: {error}") from None
        return replace(self, target=target_name).write_head(source, draft, target, self.folder)

"""`jspec distill`: teaches a draft its target, as one of `configs/` says."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from jspec.cli.screen import console, emit
from jspec.cli.verb import DONE, FAILED, Verb


@dataclass(kw_only=True)
class Distill(Verb):
    """Teach a draft its target's law; goes on from the newest checkpoint of its run."""

    config: Positional[Path]
    """A Python file with `def config() -> Distillation`, such as configs/zoo_wide_distilled.py."""
    overrides: Positional[tuple[str, ...]] = ()
    """Fields to change, dotted: steps=100 losses.total_variation=1."""

    def run(self) -> int:
        from dataclasses import replace

        from jspec.cli.overrides import override
        from jspec.cli.pair import read_draft, read_target, write_model
        from jspec.cli.recipes import read_recipe
        from jspec.distill.recipe import Distillation
        from jspec.distill.run import distill
        from jspec.zoo.corpus import held_out_documents, training_documents
        from jspec.zoo.prompts import held_out_prompts

        recipe = override(read_recipe(self.config, Distillation), self.overrides)
        screen = console()
        target = read_target(recipe.target, "float32")
        draft = read_draft(recipe.draft, target, "float32")
        end = target.end_of_text[0]

        def encode(documents):
            import numpy as np

            rows = target.tokenizer(documents, add_special_tokens=False, verbose=False)
            return [np.array([*row, end], np.int32) for row in rows["input_ids"]]

        try:
            params = distill(
                recipe,
                target,
                draft,
                encode(training_documents()),
                encode(held_out_documents()),
                held_out_prompts(target.tokenizer, recipe.prompts, 64),
                note=lambda text: screen.print(text, soft_wrap=True),
                show=lambda done, count: screen.print(f"{done}/{count}"),
            )
        except FloatingPointError as error:
            screen.print(f"{error}: the last good checkpoint is kept", soft_wrap=True)
            return FAILED
        folder = Path(recipe.output).absolute() / recipe.name / "model"
        write_model(folder, replace(draft, params=params), "bfloat16")
        if self.json:
            emit({"name": recipe.name, "steps": recipe.steps, "folder": str(folder)})
        else:
            screen.print(f"{recipe.name}: written to {folder}", soft_wrap=True)
        return DONE

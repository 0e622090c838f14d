"""`jspec distill`: teaches a draft its target, as one of `configs/` says."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from jspec.cli.pair import read_draft, read_target, write_model
from jspec.cli.training import Training

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jspec.distill.recipe import Distillation
    from jspec.formats.huggingface import Checkpoint


@dataclass(kw_only=True)
class Distill(Training):
    """Teach a draft its target's law; goes on from the newest checkpoint of its run."""

    def run(self) -> int:
        from jspec.distill.recipe import Distillation

        return self.train(Distillation, _make)


def _make(recipe: "Distillation", mesh: "Mesh | None", note: Callable[[str], None]) -> Path | None:
    """Distils, and writes the draft to `output/name/model`, whose path it returns."""
    from jspec.distill.run import Student, distill
    from jspec.zoo.lessons import lessons

    target = read_target(recipe.target, recipe.teacher, mesh)
    if not target.end_of_text:
        raise ValueError(f"target={recipe.target!r} names no end of text: give it an eos_token_id")
    student = _student(recipe, target, mesh)
    folder = Path(recipe.output).absolute() / recipe.name
    note("reading the texts")
    texts, held_out = lessons(
        recipe.text, target.tokenizer, target.end_of_text[0], cache=folder / "data", note=note
    )
    taught = Student(student.model, student.params)
    done = distill(recipe, target, taught, texts, held_out, mesh=mesh, note=note)
    if done.step < recipe.steps:
        return None
    write_model(folder / "model", replace(student, params=done.params), "bfloat16")
    return folder / "model"


def _student(recipe: "Distillation", target: "Checkpoint", mesh: "Mesh | None") -> "Checkpoint":
    """The draft to start from, or a fresh one of the recipe's shape, in the target's dress."""
    import jax

    from jspec.models.initial import initial
    from jspec.models.transformer import transformer
    from jspec.sharding import REPLICATED, RULES

    if recipe.model is None:
        found = read_draft(recipe.draft, target, "float32", mesh, replicated=recipe.replicated)
        return replace(found, model=transformer(found.model.config, remat=recipe.remat))
    wanted, there = recipe.model.vocabulary, target.model.config.vocabulary
    if wanted != there:
        raise ValueError(f"model.vocabulary={wanted}: the target has {there} tokens, so take those")
    model = transformer(recipe.model, remat=recipe.remat)
    rules = REPLICATED if recipe.replicated else RULES
    params = initial(model, jax.random.key(recipe.seed), mesh=mesh, rules=rules)
    return replace(target, model=model, params=params, family="llama")

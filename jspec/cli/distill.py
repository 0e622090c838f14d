"""`jspec distill`: teaches a draft its target, as one of `configs/` says."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jspec.cli.pair import read_draft, read_head, read_model, read_target, write_model
from jspec.cli.training import Training

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jspec.distill.checkpoints import Note
    from jspec.distill.recipe import Distillation
    from jspec.distill.student import Student
    from jspec.distill.texts import Texts
    from jspec.formats.heads import HeadCheckpoint
    from jspec.formats.huggingface import Checkpoint


@dataclass(kw_only=True)
class Distill(Training):
    """Teach a draft its target's law; goes on from the newest checkpoint of its run."""

    def run(self) -> int:
        from jspec.distill.recipe import Distillation

        return self.train(Distillation, _make)


class Lesson(NamedTuple):
    """What a recipe names: who teaches, whom, and on which texts."""

    target: "Checkpoint"
    draft: "Checkpoint | HeadCheckpoint"
    texts: "Texts"
    held_out: "Texts"

    @property
    def student(self) -> "Student":
        """The draft as it is taught."""
        from jspec.distill.student import HeadStudent, ModelStudent
        from jspec.formats.heads import HeadCheckpoint

        if isinstance(self.draft, HeadCheckpoint):
            return HeadStudent(self.draft.head, self.draft.params)
        return ModelStudent(self.draft.model, self.draft.params)


def read_lesson(recipe: "Distillation", mesh: "Mesh | None", note: "Note") -> Lesson:
    """Loads what a recipe names; what is read of data sets is kept below `output/name`."""
    from jspec.zoo.lessons import lessons

    target = read_target(recipe.target, recipe.teacher, mesh)
    if not target.end_of_text:
        raise ValueError(f"target={recipe.target!r} names no end of text: give it an eos_token_id")
    draft = read_student(recipe, target, mesh)
    cache = Path(recipe.output).absolute() / recipe.name / "data"
    note("reading the texts")
    texts, held_out = lessons(
        recipe.text, target.tokenizer, target.end_of_text[0], cache=cache, note=note
    )
    return Lesson(target, draft, texts, held_out)


def _make(recipe: "Distillation", mesh: "Mesh | None", note: "Note") -> Path | None:
    """Distils, and writes the draft to `output/name/model`, whose path it returns."""
    from jspec.distill.run import course, distill

    lesson = read_lesson(recipe, mesh, note)
    compiled = course(recipe, lesson.target, lesson.student, mesh=mesh)
    done = distill(recipe, compiled, lesson.texts, lesson.held_out, mesh=mesh, note=note)
    if done.step < recipe.steps:
        return None
    folder = Path(recipe.output).absolute() / recipe.name / "model"
    write_draft(folder, replace(lesson.draft, params=done.params), "bfloat16")
    return folder


def write_draft(folder: Path, draft: "Checkpoint | HeadCheckpoint", dtype: str) -> None:
    """Writes a draft of either kind; a head without its target's embedding."""
    from jspec.formats.heads import HeadCheckpoint, save_head

    if isinstance(draft, HeadCheckpoint):
        save_head(folder, draft.head, draft.params, dtype=dtype, format=draft.format)
    else:
        write_model(folder, draft, dtype)


def read_student(
    recipe: "Distillation", target: "Checkpoint | None" = None, mesh: "Mesh | None" = None
) -> "Checkpoint | HeadCheckpoint":
    """The draft to start from, or a fresh one of the recipe's shape, in the target's dress.

    Args:
      target: where it is there already, a draft's tokenizer is held against its.
    """
    if recipe.head is None and recipe.model is None and target is None:
        return read_model("draft", recipe.draft, "float32")
    if target is None:
        target = read_target(recipe.target, recipe.teacher)
    read = _model_student if recipe.head is None else _head_student
    return read(recipe, target, mesh)


def _model_student(
    recipe: "Distillation", target: "Checkpoint", mesh: "Mesh | None"
) -> "Checkpoint":
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


def _head_student(
    recipe: "Distillation", target: "Checkpoint", mesh: "Mesh | None"
) -> "HeadCheckpoint":
    import jax

    from jspec.distill.student import head_of
    from jspec.formats.heads import HeadCheckpoint
    from jspec.models.initial import initial
    from jspec.sharding import REPLICATED, RULES

    head = head_of(recipe.head, target.model.config)
    if recipe.draft:
        found = read_head(
            "draft", recipe.draft, target, "float32", mesh, replicated=recipe.replicated
        )
        if found.head != head:
            raise ValueError(
                f"draft={recipe.draft!r} is {found.head}, and head.kind={recipe.head.kind!r} with "
                f"its sizes is {head}: say what the draft is"
            )
        return found
    rules = REPLICATED if recipe.replicated else RULES
    params = initial(head, jax.random.key(recipe.seed), mesh=mesh, rules=rules)
    return HeadCheckpoint(head, params, target.folder, "eagle")

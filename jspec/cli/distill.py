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
    from jspec.models.protocol import Params


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
            return HeadStudent(self.draft.head, self.draft.params, self.draft.d2t)
        return ModelStudent(self.draft.model, self.draft.params)


def read_lesson(recipe: "Distillation", mesh: "Mesh | None", note: "Note") -> Lesson:
    """Loads what a recipe names; what is read of data sets is kept below `output/name`."""
    from jspec.zoo.lessons import lessons

    target = read_target(recipe.target, recipe.teacher, mesh)
    if not target.end_of_text:
        raise ValueError(f"target={recipe.target!r} names no end of text: give it an eos_token_id")
    draft = read_student(recipe, target, mesh)
    run = Path(recipe.output).absolute() / recipe.name
    note("reading the texts")
    texts, held_out = lessons(
        recipe.text, target.tokenizer, target.end_of_text[0], cache=run / "data", note=note
    )
    if lacks_tokens(draft):
        draft = with_tokens(draft, run, texts, target.end_of_text, mesh)
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
    """Writes a draft of either kind; a head as its authors do, without its target's embedding."""
    from jspec.formats.heads import HeadCheckpoint, save_head

    if isinstance(draft, HeadCheckpoint):
        save_head(folder, draft.head, draft.params, d2t=draft.d2t, dtype=dtype)
    else:
        write_model(folder, draft, dtype)


def lacks_tokens(draft: "Checkpoint | HeadCheckpoint") -> bool:
    """Whether it is a fresh head of which nothing says yet what its few tokens are."""
    from jspec.formats.heads import HeadCheckpoint

    if not isinstance(draft, HeadCheckpoint) or draft.d2t is not None:
        return False
    return draft.head.draft_vocabulary < draft.head.config.vocabulary


def with_tokens(
    draft: "HeadCheckpoint",
    run: Path,
    texts: "Texts | None" = None,
    always: tuple[int, ...] = (),
    mesh: "Mesh | None" = None,
) -> "HeadCheckpoint":
    """The head with the tokens that its run keeps or, before there is one, the most frequent.

    Args:
      texts: to count them in; always: those that belong to it however seldom they are.
    """
    from jspec.distill.loop import CHECKPOINTS
    from jspec.distill.vocabulary import TABLE, frequent, kept
    from jspec.formats.vocabulary import laid

    count = draft.head.draft_vocabulary
    d2t = kept(run, count)
    if d2t is None and (texts is None or (run / CHECKPOINTS).exists()):
        raise ValueError(
            f"{run} has no {TABLE}, so nothing says which {count} tokens its head has: put the "
            "file back, or take another name"
        )
    if d2t is None:
        vocabulary = draft.head.config.vocabulary
        d2t = frequent(texts, count, vocabulary=vocabulary, always=always)
    return replace(draft, d2t=laid(d2t, mesh))


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

    from jspec.models.protocol import initial
    from jspec.models.transformer import transformer
    from jspec.parallel.sharding import REPLICATED, RULES

    if recipe.model is None:
        found = read_draft(recipe.draft, target, "float32", mesh, replicated=recipe.replicated)
        return replace(found, model=transformer(found.model.config, remat=recipe.remat))
    wanted, there = recipe.model.vocabulary, target.model.config.vocabulary
    if wanted != there:
        raise ValueError(f"model.vocabulary={wanted}: the target has {there} tokens, so take those")
    model = transformer(recipe.model, remat=recipe.remat)
    rules = REPLICATED if recipe.replicated else RULES
    if recipe.parent:
        params, family = _cut_out(recipe, target, mesh)
        return replace(target, model=model, params=params, family=family)
    params = initial(model, jax.random.key(recipe.seed), mesh=mesh, rules=rules)
    return replace(target, model=model, params=params, family="llama")


def _cut_out(
    recipe: "Distillation", target: "Checkpoint", mesh: "Mesh | None"
) -> "tuple[Params, str]":
    """Parameters out of the parent's, and the parent's family."""
    import jax
    import jax.numpy as jnp

    from jspec.models.pruning import first_layers, prune, spread_layers
    from jspec.models.transformer import transformer
    from jspec.parallel.sharding import REPLICATED, RULES, check, shardings

    rules = REPLICATED if recipe.replicated else RULES
    if mesh is not None:
        check(mesh, recipe.model, rules)
    parent = target
    if recipe.parent != "target":
        parent = read_draft(recipe.parent, target, "float32", mesh)
    choose = {"first": first_layers, "spread": spread_layers}[recipe.parent_layers]
    config = parent.model.config
    try:
        layers = choose(recipe.model.layers, config.layers)
        params = prune(parent.params, config, recipe.model, layers=layers)
    except ValueError as error:
        raise ValueError(f"parent={recipe.parent!r}, model: {error}") from error
    params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    if mesh is not None:
        places = shardings(mesh, transformer(recipe.model).axes(), rules)
        params = jax.device_put(params, places)
    return params, parent.family


def _head_student(
    recipe: "Distillation", target: "Checkpoint", mesh: "Mesh | None"
) -> "HeadCheckpoint":
    import jax

    from jspec.distill.student import check_said, head_of
    from jspec.formats.heads import HeadCheckpoint, own_format
    from jspec.models.protocol import initial
    from jspec.parallel.sharding import REPLICATED, RULES, check

    if recipe.draft:
        found = read_head(
            "draft", recipe.draft, target, "float32", mesh, replicated=recipe.replicated
        )
        try:
            check_said(recipe.head, found.head)
        except ValueError as error:
            raise ValueError(f"draft={recipe.draft!r}: {error}") from error
        return found
    head = head_of(recipe.head, target.model.config)
    rules = REPLICATED if recipe.replicated else RULES
    if mesh is not None:
        check(mesh, head.module, rules)
    params = initial(head, jax.random.key(recipe.seed), mesh=mesh, rules=rules)
    return HeadCheckpoint(head, params, target.folder, own_format(head))

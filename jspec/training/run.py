"""Distillation of a draft, from a recipe to a folder: `distill`, and the parts of which it is made.

A study that trains many drafts makes one `TrainSetup` and calls `run_distillation` for each.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from jspec.core.tree import Tree
from jspec.core.tree_text import read_tree
from jspec.draft.draft import Draft, HeadDraft, load_draft
from jspec.draft.lookup import LookupDrafter
from jspec.draft.protocol import Drafter
from jspec.formats.folder import read_json
from jspec.formats.heads import HeadCheckpoint
from jspec.formats.huggingface import Checkpoint
from jspec.models.heads import Head
from jspec.models.protocol import Params
from jspec.parallel.sharding import on_mesh, read_mesh
from jspec.training.checkpoints import Note, read_checkpoint
from jspec.training.config_files import find_recipe, recipe_from_json
from jspec.training.data import (
    Document,
    Mixture,
    Source,
    count_rows_without_targets,
    pack,
)
from jspec.training.evaluation import decoding, held_out_loss, mean_acceptance_length, measure_all
from jspec.training.generated_data import (
    Generator,
    generate_documents,
    on_policy_source,
    sample_prompts,
)
from jspec.training.loading import load_student, load_target, save_draft
from jspec.training.loop import (
    CHECKPOINTS,
    RECIPE,
    Trained,
    claim_run,
    last_metrics,
    make_folder,
    print_note,
    train,
)
from jspec.training.objectives import Objective, in_dtype
from jspec.training.recipe import Distillation, TeacherData, read_temperatures, split_temperatures
from jspec.training.step import TrainProgram, compile_program, init_state, make_optimizer
from jspec.training.student import frozen_params, make_objective, trained_part
from jspec.training.text_data import Texts, load_texts
from jspec.training.vocabulary import lacks_vocabulary, with_vocabulary, write_table

# Folders below a run's, and seeds that tell the draws of one source from those of another.
DRAFT, DATA, TEACHER_DATA, ON_POLICY = "model", "data", "teacher_data", "on_policy"
TEACHER_SEED, ON_POLICY_SEED, PROMPT_SEED = range(1, 4)
LOOKUP_TREE = Tree.chain(3)
FEW = 0.03  # of the rows, that may hold no token to learn from without a word


@dataclass(frozen=True, eq=False)
class DistillationRun:
    """What `distill` returns.

    Attributes:
      recipe: that it followed; the run's own folder is `recipe.folder`.
      draft: with the trained parameters, in float32.
      step: of these parameters.
      folder: where the draft is written; None if the run was preempted before its last step.
      metrics: that were logged last, by the names in `log.jsonl`.
    """

    recipe: Distillation
    draft: Checkpoint | HeadCheckpoint
    step: int
    folder: Path | None
    metrics: dict[str, float]


def distill(
    config: str | os.PathLike[str] | Distillation, *, note: Note = print_note, **changes: Any
) -> DistillationRun:
    """Trains a draft on its target's distribution, and writes it to `output/name/model`.

    The run resumes from its newest checkpoint, also when it is called again with more `steps`.

    Args:
      config: a file of `configs/`, or a recipe.
      note: called with what is done before the first step, and what went wrong; prints on stderr
        if not given.
      changes: fields of the recipe, such as `steps=60`; `losses={"forward_kl": 0}` changes one
        field of a field.

    Raises `ValueError` for a recipe that cannot be followed, and `FloatingPointError` when a loss
    is not finite; the last good checkpoint stays.

    >>> run = distill("configs/zoo_distilled.py", steps=60)  # doctest: +SKIP
    >>> run.folder, run.metrics["acceptance_length@0"]  # doctest: +SKIP
    """
    recipe = find_recipe(config, Distillation, changes)
    mesh = read_mesh(recipe.mesh)
    with on_mesh(mesh):
        inputs = load_inputs(recipe, mesh, note)
        setup = make_setup(recipe, inputs.student, mesh=mesh)
        done = run_distillation(recipe, setup, inputs.texts, inputs.held_out, mesh=mesh, note=note)
        draft, folder = inputs.student.with_params(done.params).checkpoint, None
        assert draft is not None
        if done.step == recipe.steps:
            folder = recipe.folder / DRAFT
            save_draft(folder, draft)
    return DistillationRun(recipe, draft, done.step, folder, last_metrics(recipe.folder))


def load_run_draft(
    folder: str | os.PathLike[str], step: str = "newest"
) -> tuple[Distillation, Checkpoint | HeadCheckpoint]:
    """The recipe of a distillation, and its draft as a checkpoint has it; the run may be running.

    Args:
      folder: the run's; step: `newest`, `best`, or the number of a checkpoint.
    """
    folder = Path(folder).expanduser()
    try:
        recipe = recipe_from_json(Distillation, read_json(folder / RECIPE))
    except ValueError as error:
        raise ValueError(f"name={str(folder)!r}: {RECIPE}: {error}") from error
    draft = load_student(recipe)
    if lacks_vocabulary(draft):
        draft = with_vocabulary(draft, folder, started=True)
    state = init_state(draft.params, optimizer=make_optimizer(recipe))
    state = read_checkpoint((folder / CHECKPOINTS).absolute(), step, state)
    return recipe, replace(draft, params=state.params)


class Inputs(NamedTuple):
    """What a recipe names: the draft to train beside its teacher, and texts."""

    student: Draft
    texts: Texts
    held_out: Texts

    @property
    def target(self) -> Checkpoint:
        """The teacher."""
        return self.student.target


def load_inputs(recipe: Distillation, mesh: Mesh | None, note: Note) -> Inputs:
    """Loads what a recipe names; what is read of data sets is kept in the run's folder."""
    make_folder(recipe)
    target = load_target(recipe.target, recipe.teacher_dtype, mesh)
    draft = load_student(recipe, target, mesh)
    note("reading the texts")
    texts, held_out = load_texts(
        recipe.text, target.tokenizer, target.stop_token_ids[0],
        vocab_size=target.model.config.vocab_size, cache=recipe.folder / DATA, note=note,
    )  # fmt: skip
    if lacks_vocabulary(draft):
        draft = with_vocabulary(
            draft, recipe.folder, started=(recipe.folder / CHECKPOINTS).exists(),
            texts=texts, always=target.stop_token_ids, mesh=mesh,
        )  # fmt: skip
    return Inputs(load_draft(draft, target), texts, held_out)


class TrainSetup(NamedTuple):
    """Target, student and the compiled step: what runs that differ only in their data share.

    `evaluated` is the objective without the noise of training.
    """

    target: Checkpoint
    student: Draft
    evaluated: Objective
    program: TrainProgram


def make_setup(recipe: Distillation, student: Draft, *, mesh: Mesh | None = None) -> TrainSetup:
    """The setup that a recipe asks for; its target returns what the student reads."""
    target = replace(student.target, model=student.target_model)
    context = min(student.max_position_embeddings, target.model.config.max_position_embeddings)
    if recipe.sequence_length > context:
        raise ValueError(
            f"sequence_length={recipe.sequence_length} is longer than the context of {context} "
            "that target and draft share"
        )
    part, params = trained_part(student)
    objective, evaluated = (
        make_objective(part, one, target.model) for one in (recipe, recipe.without_noise())
    )
    program = compile_program(
        params,
        frozen_params(student),
        objective=in_dtype(objective, recipe.compute_dtype),
        optimizer=make_optimizer(recipe),
        mesh=mesh,
    )
    return TrainSetup(target, student, evaluated, program)


def run_distillation(
    recipe: Distillation,
    setup: TrainSetup,
    texts: Texts,
    held_out: Texts,
    *,
    teacher_data: Sequence[Document] | None = None,
    mesh: Mesh | None = None,
    note: Note,
) -> Trained:
    """Trains the student of a setup, from where the run last stopped.

    Args:
      texts: to train on, and to take prompts from; held_out: to evaluate on.
      teacher_data: that several runs share; without it the run generates its own.
      note: called with what is done before the first step, and what went wrong.
    """
    student, frozen = setup.student, frozen_params(setup.student)
    drafter = _drafter("tree", recipe.tree, setup)
    claim_run(recipe, note)
    if isinstance(student, HeadDraft):
        write_table(recipe.folder, student.checkpoint.d2t)
    documents = _at_temperatures(recipe, held_out)
    rows = pack(
        documents, recipe.sequence_length, lengths=held_out.lengths, beginning=held_out.beginning
    )
    prompts = sample_prompts(
        held_out,
        TeacherData(
            count=recipe.prompts,
            prompt_length=recipe.teacher_data.prompt_length,
            max_new_tokens=recipe.max_new_tokens,
        ),
        context=setup.target.model.config.max_position_embeddings,
        seed=PROMPT_SEED,
    )
    evaluate = measure_all(
        held_out_loss(setup.evaluated, frozen, rows, recipe.batch_size, mesh),
        decoding(
            student,
            prompts,
            split_temperatures(recipe.temperatures),
            drafter=drafter,
            max_new_tokens=recipe.max_new_tokens,
            stop_token_ids=setup.target.stop_token_ids,
        ),
    )
    return train(
        recipe,
        setup.program,
        trained_part(student)[1],
        frozen,
        make_source(recipe, setup, texts, teacher_data, note=note),
        evaluate,
        mean_acceptance_length,
        mesh=mesh,
        note=note,
    )


def generate_teacher_data(
    recipe: Distillation, folder: Path, setup: TrainSetup, texts: Texts
) -> list[Document]:
    """What the target generates for a recipe, which does not depend on the student; samples that
    are in `folder` are not generated again."""
    target = setup.target
    # A draft that has learned nothing yet would cost more than it saves.
    drafter: tuple[Drafter, Params] = LookupDrafter(LOOKUP_TREE), ()
    if recipe.draft:
        drafter = (
            _drafter("teacher_data.tree", recipe.teacher_data.tree, setup),
            setup.student.params,
        )
    return generate_documents(
        recipe, recipe.teacher_data, folder, (TEACHER_SEED,),
        texts=texts, stop_token_ids=target.stop_token_ids,
        generator=Generator("target", target.model, target.params, *drafter),
    )  # fmt: skip


def make_source(
    recipe: Distillation,
    setup: TrainSetup,
    texts: Texts,
    teacher_data: Sequence[Document] | None = None,
    *,
    note: Note,
) -> Callable[[int, Params], Source]:
    """The source of each step, given its parameters: three kinds of rows, mixed by weight."""
    fixed: list[tuple[Source, float]] = []
    if recipe.text.weight:
        rows = pack(
            _at_temperatures(recipe, texts), recipe.sequence_length,
            lengths=texts.lengths, beginning=texts.beginning, seed=recipe.seed,
        )  # fmt: skip
        without, looked_at = count_rows_without_targets(rows)
        if without > FEW * looked_at:
            note(
                f"{without} of {looked_at} rows hold no token to learn from: a larger "
                f"sequence_length than {recipe.sequence_length} would keep prompts and answers "
                "together"
            )
        fixed.append((rows, recipe.text.weight))
    if recipe.teacher_data.weight:
        if teacher_data is None:
            folder = recipe.folder / TEACHER_DATA
            teacher_data = generate_teacher_data(recipe, folder, setup, texts)
        rows = pack(
            teacher_data, recipe.sequence_length, beginning=texts.beginning, seed=recipe.seed
        )
        fixed.append((rows, recipe.teacher_data.weight))

    def mix(*more: tuple[Source, float]) -> Source:
        return Mixture(*zip(*fixed, *more, strict=True), seed=recipe.seed)

    if not recipe.on_policy.weight:
        mixed = mix()
        return lambda step, params: mixed  # noqa: ARG005

    model, _ = trained_part(setup.student)
    assert not isinstance(model, Head)  # a recipe refuses it
    return on_policy_source(
        recipe,
        recipe.folder / ON_POLICY,
        ON_POLICY_SEED,
        texts=texts,
        stop_token_ids=setup.target.stop_token_ids,
        generator=lambda params: Generator(
            "student", model, params, LookupDrafter(LOOKUP_TREE), ()
        ),
        mix=lambda rows: mix((rows, recipe.on_policy.weight)),
    )


def _at_temperatures(recipe: Distillation, texts: Texts) -> Sequence[Document]:
    """Texts at the temperatures of the loss or, if it has none, at those of the teacher's data."""
    wanted = recipe.loss_temperature or recipe.teacher_data.temperature
    drawn = read_temperatures("loss_temperature", wanted).draw(recipe.seed, len(texts))
    return texts.at(drawn)


def _drafter(field: str, tree: str, setup: TrainSetup) -> Drafter:
    context = setup.target.model.config.max_position_embeddings
    try:
        return setup.student.drafter(read_tree(tree, context))
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error

"""A distillation from its recipe: data, teacher, student and loop."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from jspec.core.tree import Tree
from jspec.core.tree_text import read_tree
from jspec.distill import answers
from jspec.distill.checkpoints import Note
from jspec.distill.data import Document, Mixture, Source, pack
from jspec.distill.evaluation import both, decoding, held_out_loss, tokens_per_round
from jspec.distill.loop import Run, claim, train
from jspec.distill.objective import Objective, computed_in
from jspec.distill.optimizer import optimizer
from jspec.distill.progress import progress
from jspec.distill.recipe import Answers, Distillation, Rollouts
from jspec.distill.step import Program, program
from jspec.distill.student import Student
from jspec.distill.temperatures import read_served, read_temperatures
from jspec.distill.texts import Texts
from jspec.distill.vocabulary import keep
from jspec.draft.lookup import LookupDrafter
from jspec.draft.protocol import Drafter
from jspec.formats.huggingface import Checkpoint
from jspec.models.protocol import Model, Params

# What each source's draws are told apart by.
ANSWERS, ROLLOUTS, PROMPTS = range(1, 4)
LOOKED_UP = Tree.chain(3)


class Course(NamedTuple):
    """Who teaches whom, and a step of it, compiled: what runs that differ in their data share.

    `measured` is what the step lowers, without the noise of learning.
    """

    target: Checkpoint
    student: Student
    measured: Objective
    steps: Program


def course(
    recipe: Distillation, target: Checkpoint, student: Student, *, mesh: Mesh | None = None
) -> Course:
    """The course that a recipe asks for."""
    context = min(student.context, target.model.config.context)
    if recipe.length > context:
        raise ValueError(
            f"length={recipe.length} is longer than the context of {context} that target and draft "
            "share"
        )
    target = replace(target, model=student.reading(target.model))
    objective = student.objective(recipe, target.model)
    steps = program(
        student.params,
        student.frozen(target.params),
        objective=computed_in(objective, recipe.compute),
        optimizer=optimizer(recipe),
        mesh=mesh,
    )
    measured = student.objective(recipe.without_noise(), target.model)
    return Course(target, student, measured, steps)


def distill(
    recipe: Distillation,
    course: Course,
    texts: Texts,
    held_out: Texts,
    *,
    shared: Sequence[Document] | None = None,
    mesh: Mesh | None = None,
    note: Note,
) -> Run:
    """Teaches the student, from where the run last stopped.

    Args:
      texts: to learn from, and to take prompts from; held_out: to measure on.
      shared: answers of the target that several runs learn; else the run has its own written.
      note: told what is being done before the first step, and what went wrong.
    """
    target, student = course.target, course.student
    folder = Path(recipe.output).absolute() / recipe.name
    frozen, guessing = student.frozen(target.params), _guessing("tree", recipe.tree, course)
    claim(folder, recipe, note)
    keep(folder, student.d2t)
    tested = pack(_at_temperatures(recipe, held_out), recipe.length, lengths=held_out.lengths)
    measure = both(
        held_out_loss(course.measured, frozen, tested, recipe.batch, mesh),
        decoding(
            target.params,
            prompts(
                held_out,
                Answers(count=recipe.prompts, prompt=recipe.answers.prompt, tokens=recipe.tokens),
                context=target.model.config.context,
                seed=PROMPTS,
            ),
            read_served(recipe.served),
            target=target.model,
            drafter=guessing,
            drafting=student.drafting,
            tokens=recipe.tokens,
        ),
    )
    return train(
        recipe,
        course.steps,
        student.params,
        frozen,
        _sources(recipe, folder, course, texts, shared),
        measure,
        tokens_per_round,
        mesh=mesh,
        note=note,
    )


class Writer(NamedTuple):
    """Who writes text to learn from, and what guesses ahead of it meanwhile."""

    name: str
    model: Model
    params: Params
    drafter: Drafter
    draft: Params


def target_answers(
    recipe: Distillation, folder: Path, course: Course, texts: Texts
) -> list[Document]:
    """What the target writes for a recipe, and nothing that hangs on the student; those that
    `folder` holds are not made again."""
    target, student = course.target, course.student
    # Of a draft that has learned nothing yet no guess is worth its while.
    guessing: tuple[Drafter, Params] = LookupDrafter(LOOKED_UP), ()
    if recipe.draft:
        guessing = (
            _guessing("answers.tree", recipe.answers.tree, course),
            student.drafting(student.params, target.params),
        )
    writer = Writer("target", target.model, target.params, *guessing)
    return _written(
        recipe, recipe.answers, folder, (ANSWERS,),
        texts=texts, stops=target.end_of_text, writer=writer,
    )  # fmt: skip


def _sources(
    recipe: Distillation,
    folder: Path,
    course: Course,
    texts: Texts,
    shared: Sequence[Document] | None,
) -> Callable[[int, Params], Source]:
    """Which rows serve a step: those of the three sources, mixed by their weights."""
    student = course.student
    fixed: list[tuple[Source, float]] = []
    if recipe.text.weight:
        documents = _at_temperatures(recipe, texts)
        rows = pack(documents, recipe.length, lengths=texts.lengths, seed=recipe.seed)
        fixed.append((rows, recipe.text.weight))
    if recipe.answers.weight:
        if shared is None:
            shared = target_answers(recipe, folder / "answers", course, texts)
        fixed.append((pack(shared, recipe.length, seed=recipe.seed), recipe.answers.weight))

    def mixed(*more: tuple[Source, float]) -> Source:
        return Mixture(*zip(*fixed, *more, strict=True), seed=recipe.seed)

    if not recipe.rollouts.weight:
        whole = mixed()
        return lambda step, params: whole

    latest: dict[int, Source] = {}

    def refreshed(step: int, params: Params) -> Source:
        turn = step // recipe.rollouts.every
        if turn not in latest:
            writer = Writer("student", student.model, params, LookupDrafter(LOOKED_UP), ())
            place = folder / "rollouts" / f"{turn:05}"
            found = _written(
                recipe, recipe.rollouts, place, (ROLLOUTS, turn),
                texts=texts, stops=course.target.end_of_text, writer=writer,
            )  # fmt: skip
            rows = pack(found, recipe.length, seed=recipe.seed)
            latest.clear()
            latest[turn] = mixed((rows, recipe.rollouts.weight))
        return latest[turn]

    return refreshed


def _written(
    recipe: Distillation,
    wanted: Answers | Rollouts,
    folder: Path,
    told_apart: tuple[int, ...],
    *,
    texts: Texts,
    stops: Sequence[int],
    writer: Writer,
) -> list[Document]:
    """What the writer goes on with after the beginnings of texts."""
    seed = int(np.random.default_rng((recipe.seed, *told_apart)).integers(2**31))
    name = type(wanted).__name__.lower()
    temperatures = read_temperatures(f"{name}.temperature", wanted.temperature)
    with progress(name, wanted.count) as show:
        found = answers.answer(
            folder,
            writer.params,
            writer.draft,
            prompts(texts, wanted, context=writer.model.config.context, seed=seed),
            temperatures.draw(seed, wanted.count),
            target=writer.model,
            drafter=writer.drafter,
            tokens=wanted.tokens,
            stops=stops,
            batch=wanted.batch,
            seed=seed,
            made_by={"writer": writer.name, "target": recipe.target},
            show=show,
        )
    documents = [one.document() for one in found]
    if not recipe.loss_temperature:
        return documents
    drawn = read_temperatures("loss_temperature", recipe.loss_temperature).draw(seed, len(found))
    return [
        document._replace(temperature=temperature)
        for document, temperature in zip(documents, drawn.tolist(), strict=True)
    ]


def prompts(
    texts: Texts, wanted: Answers | Rollouts, *, context: int, seed: int
) -> list[np.ndarray]:
    """Where `wanted.count` answers go on from.

    Of conversations it is what comes before the first turn that counts; of other texts, windows of
    `wanted.prompt` tokens from anywhere. Raises `ValueError` if none leaves room for an answer.
    """
    rng = np.random.default_rng((seed, 2))
    room = context - wanted.tokens
    if texts.prompts.any():
        fitting = np.flatnonzero((texts.prompts > 0) & (texts.prompts <= room))
        if not len(fitting):
            raise ValueError(
                f"tokens={wanted.tokens}: no prompt leaves as much of the context of {context}"
            )
        chosen = fitting[_often(rng, len(fitting), wanted.count)]
        return [texts[index].tokens[: texts.prompts[index]] for index in chosen]
    length = wanted.prompt
    spans = np.maximum(0, texts.lengths - length + 1)
    ends = np.cumsum(spans)
    if length > room or not ends[-1]:
        raise ValueError(
            f"prompt={length}, tokens={wanted.tokens}: texts have up to {texts.lengths.max()} "
            f"tokens, and the context is {context}: ask for less of both"
        )
    places = rng.integers(ends[-1], size=wanted.count)
    chosen = np.searchsorted(ends, places, side="right")
    starts = places - (ends - spans)[chosen]
    pairs = zip(chosen, starts, strict=True)
    return [texts[index].tokens[start : start + length] for index, start in pairs]


def _often(rng: np.random.Generator, size: int, count: int) -> np.ndarray:
    """`count` numbers below `size`, each as often as the others, or once more."""
    rounds = [rng.permutation(size) for _ in range(-(-count // size))]
    return np.concatenate(rounds)[:count]


def _at_temperatures(recipe: Distillation, texts: Texts) -> Sequence[Document]:
    """Texts at the temperatures of the loss or, where it has none, at those of the answers."""
    wanted = recipe.loss_temperature or recipe.answers.temperature
    drawn = read_temperatures("loss_temperature", wanted).draw(recipe.seed, len(texts))
    return texts.at(drawn)


def _guessing(field: str, tree: str, course: Course) -> Drafter:
    target = course.target.model
    try:
        return course.student.drafter(target, read_tree(tree, target.config.context))
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error

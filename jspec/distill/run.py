"""A distillation from its recipe: data, teacher, student, loop, files."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jspec.distill.answers import Answer, answer
from jspec.distill.data import Blocks, Document, Mixture, Source, pack
from jspec.distill.evaluation import both, decoding, held_out_loss
from jspec.distill.loop import train
from jspec.distill.losses import mixture
from jspec.distill.objective import distillation
from jspec.distill.recipe import Distillation
from jspec.distill.temperatures import read_temperatures
from jspec.draft.small_model import SmallModelDrafter
from jspec.formats.huggingface import Checkpoint
from jspec.models.protocol import Params
from jspec.shapes import read_tree

Texts = Sequence[np.ndarray]


def distill(
    recipe: Distillation,
    target: Checkpoint,
    draft: Checkpoint,
    texts: Texts,
    held_out: Texts,
    prompts: Sequence[Sequence[int]],
    *,
    note: Callable[[str], None],
    show: Callable[[int, int], None],
) -> Params:
    """The draft's parameters after a run, which goes on where it stopped.

    Args:
      texts: tokens of each text to learn from; held_out: of those to measure the loss on.
      prompts: held-out ones, decoded at the served temperatures.
      note: told what is being done before the first step; show: how many answers there are.
    """
    objective = functools.partial(
        distillation,
        model=draft.model,
        teacher=target.model,
        loss=mixture(recipe.losses.weights(), beta=recipe.losses.beta),
        chunk=recipe.chunk,
    )
    context = target.model.config.context
    measure = both(
        held_out_loss(
            objective, target.params, _blocks(_documents(recipe, held_out), recipe), recipe.batch
        ),
        decoding(
            target.params,
            prompts,
            read_temperatures("served", recipe.served).values,
            target=target.model,
            drafter=SmallModelDrafter(draft.model, read_tree(recipe.tree, context)),
            tokens=recipe.tokens,
        ),
    )
    sources: list[tuple[Source, float]] = []
    if recipe.text.weight:
        sources.append((_blocks(_documents(recipe, texts), recipe), recipe.text.weight))
    if recipe.answers.weight:
        note(f"{recipe.answers.count} answers of the target")
        written = _answers(recipe, target, draft, texts, show)
        documents = [one.document() for one in written]
        sources.append((_blocks(documents, recipe), recipe.answers.weight))
    mixed = Mixture(*zip(*sources, strict=True), seed=recipe.seed)
    return train(recipe, objective, draft.params, target.params, mixed, measure)


def _answers(
    recipe: Distillation,
    target: Checkpoint,
    draft: Checkpoint,
    texts: Texts,
    show: Callable[[int, int], None],
) -> list[Answer]:
    wanted = recipe.answers
    tree = read_tree(wanted.tree, target.model.config.context)
    temperatures = read_temperatures("answers.temperature", wanted.temperature)
    return answer(
        Path(recipe.output).absolute() / recipe.name / "answers",
        target.params,
        draft.params,
        beginnings(texts, wanted.count, wanted.prompt, recipe.seed),
        temperatures.draw(recipe.seed, wanted.count),
        target=target.model,
        drafter=SmallModelDrafter(draft.model, tree),
        tokens=wanted.tokens,
        stops=target.end_of_text,
        batch=wanted.batch,
        seed=recipe.seed,
        made_by={"target": recipe.target, "temperature": wanted.temperature},
        show=show,
    )


def beginnings(texts: Texts, count: int, length: int, seed: int) -> list[np.ndarray]:
    """`count` windows of `length` tokens, anywhere in the texts."""
    spans = [max(0, len(text) - length + 1) for text in texts]
    ends = np.cumsum(spans)
    if not len(ends) or not ends[-1]:
        raise ValueError(f"answers.prompt={length}: no text has as many tokens")
    places = np.random.default_rng((seed, 2)).integers(ends[-1], size=count)
    chosen = np.searchsorted(ends, places, side="right")
    starts = places - (ends - spans)[chosen]
    pairs = zip(chosen, starts, strict=True)
    return [texts[text][start : start + length] for text, start in pairs]


def _documents(recipe: Distillation, texts: Texts) -> list[Document]:
    """All of every text, at the loss's temperature or, where there is none, the answers'."""
    wanted = recipe.loss_temperature or recipe.answers.temperature
    drawn = read_temperatures("loss_temperature", wanted).draw(recipe.seed, len(texts))
    pairs = zip(texts, drawn.tolist(), strict=True)
    return [Document(text, np.ones(len(text)), temperature) for text, temperature in pairs]


def _blocks(documents: Sequence[Document], recipe: Distillation) -> Blocks:
    return Blocks(pack(documents, recipe.length), recipe.seed)

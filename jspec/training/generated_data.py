"""Text that models generate to train on: the target's, once; the student's, again and again.

It is generated speculatively and kept on disk, so that a run that was stopped continues with it.
"""

import hashlib
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jspec.core.prompts import pad_prompts
from jspec.core.sampling import SamplingParams
from jspec.decode import NONFINITE
from jspec.draft.protocol import Drafter
from jspec.formats.folder import claim, write_text
from jspec.models.protocol import Model, Params
from jspec.serving import generate_many
from jspec.training.data import Document, Source, pack
from jspec.training.loop import Show, progress
from jspec.training.recipe import Distillation, OnPolicyData, TeacherData, read_temperatures
from jspec.training.text_data import Texts

PART = 64  # samples to a file
MADE_BY = "made_by.json"


@dataclass(frozen=True)
class Sample:
    """What a model generated after a prompt, at a temperature; `index` is the prompt's."""

    index: int
    prompt: list[int]
    tokens: list[int]
    temperature: float

    def document(self) -> Document:
        """A text of which the prompt is only read."""
        weight = np.repeat([0.0, 1.0], [len(self.prompt), len(self.tokens)])
        return Document(np.array([*self.prompt, *self.tokens], np.int32), weight, self.temperature)


class Generator(NamedTuple):
    """A model that generates text to train on, and the draft that speeds it up."""

    name: str
    model: Model
    params: Params
    drafter: Drafter
    draft: Params


def generate_samples(
    folder: Path,
    params: Params,
    draft: Params,
    prompts: Sequence[Sequence[int] | np.ndarray],
    temperatures: np.ndarray,
    *,
    target: Model,
    drafter: Drafter,
    max_new_tokens: int,
    stop_token_ids: Sequence[int] = (),
    batch_size: int = 8,
    seed: int = 0,
    made_by: Mapping[str, Any],
    show: Show,
) -> list[Sample]:
    """A sample after every prompt, in their order; those in `folder` are not generated again.

    A sample depends on `seed`, its prompt and the prompt's place alone, and not on the draft: a run
    that was stopped continues to the same samples.

    Args:
      temperatures: `[n]`, one for each prompt.
      made_by: what else the samples depend on; a folder that was made by something else is refused.
      show: called with how many are there.
    """
    depends_on = {
        **made_by,
        "prompts": _digest(json.dumps([list(map(int, prompt)) for prompt in prompts]).encode()),
        "temperatures": _digest(temperatures.tobytes()),
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    claim(folder / MADE_BY, depends_on, fixed=depends_on, what="set of samples")
    found = {sample.index: sample for sample in _read(folder)}
    missing = [index for index in range(len(prompts)) if index not in found]
    show(len(found))
    if missing:
        keys = jax.random.split(jax.random.key(seed), len(prompts))[np.array(missing)]
        padded = pad_prompts(
            [list(map(int, prompts[index])) for index in missing],
            context_length=target.config.max_position_embeddings,
            max_new_tokens=max_new_tokens,
        )
        how = SamplingParams.create(
            len(missing), temperature=temperatures[missing].tolist(), stop_token_ids=stop_token_ids
        )
        part: list[Sample] = []
        try:
            for place, text in generate_many(
                params, draft, padded, keys, how,
                target=target, drafter=drafter,
                max_new_tokens=max_new_tokens, batch_size=batch_size,
            ):  # fmt: skip
                index = missing[place]
                if int(text.finish_reason[0]) == NONFINITE:
                    raise FloatingPointError(
                        f"made_by {dict(made_by)}: logits after prompt {index} are not finite, so "
                        "what follows is not kept: give the model another dtype, such as bfloat16"
                    )
                ids = np.asarray(text.tokens)[0, : int(text.length[0])].tolist()
                prompt = list(map(int, prompts[index]))
                found[index] = Sample(index, prompt, ids, float(temperatures[index]))
                part.append(found[index])
                show(len(found))
                if len(part) == PART:
                    _write(folder, part)
                    part = []
        finally:
            # What is done is kept, whatever ends the rest.
            _write(folder, part)
    return [found[index] for index in range(len(prompts))]


def generate_documents(
    recipe: Distillation,
    wanted: TeacherData | OnPolicyData,
    folder: Path,
    seeds: tuple[int, ...],
    *,
    texts: Texts,
    stop_token_ids: Sequence[int],
    generator: Generator,
) -> list[Document]:
    """Documents that a model generates after prompts from `texts`, at the recipe's temperatures.

    Args:
      wanted: how many, and how; folder: where they are kept.
      seeds: beside the recipe's seed, which tell the draws of one source from those of another.
    """
    seed = int(np.random.default_rng((recipe.seed, *seeds)).integers(2**31))
    name = "teacher_data" if isinstance(wanted, TeacherData) else "on_policy"
    temperatures = read_temperatures(f"{name}.temperature", wanted.temperature)
    with progress(name.replace("_", " "), wanted.count) as show:
        found = generate_samples(
            folder,
            generator.params,
            generator.draft,
            sample_prompts(
                texts, wanted, context=generator.model.config.max_position_embeddings, seed=seed
            ),
            temperatures.draw(seed, wanted.count),
            target=generator.model,
            drafter=generator.drafter,
            max_new_tokens=wanted.max_new_tokens,
            stop_token_ids=stop_token_ids,
            batch_size=wanted.batch_size,
            seed=seed,
            made_by={"generator": generator.name, "target": recipe.target},
            show=show,
        )
    documents = [sample.document() for sample in found]
    if not recipe.loss_temperature:
        return documents
    drawn = read_temperatures("loss_temperature", recipe.loss_temperature).draw(seed, len(found))
    return [
        document._replace(temperature=temperature)
        for document, temperature in zip(documents, drawn.tolist(), strict=True)
    ]


def on_policy_source(
    recipe: Distillation,
    folder: Path,
    seed: int,
    *,
    texts: Texts,
    stop_token_ids: Sequence[int],
    generator: Callable[[Params], Generator],
    mix: Callable[[Source], Source],
) -> Callable[[int, Params], Source]:
    """The source of each step: rows that the student generated lately, mixed with others.

    Args:
      seed: which tells its draws from those of other sources.
      generator: the student with given parameters; mix: adds the rows of the other sources.
    """
    latest: dict[int, Source] = {}

    def source_at(step: int, params: Params) -> Source:
        number = step // recipe.on_policy.every
        if number not in latest:
            documents = generate_documents(
                recipe, recipe.on_policy, folder / f"{number:05}", (seed, number),
                texts=texts, stop_token_ids=stop_token_ids, generator=generator(params),
            )  # fmt: skip
            rows = pack(
                documents, recipe.sequence_length, beginning=texts.beginning, seed=recipe.seed
            )
            latest.clear()
            latest[number] = mix(rows)
        return latest[number]

    return source_at


def sample_prompts(
    texts: Texts, wanted: TeacherData | OnPolicyData, *, context: int, seed: int
) -> list[np.ndarray]:
    """`wanted.count` prompts to continue.

    Of conversations a prompt is what asks for the assistant's first turn; of other texts, a window
    of `wanted.prompt_length` tokens from anywhere, which begins as a text does. Raises `ValueError`
    if none leaves room for `wanted.max_new_tokens` in the context.
    """
    rng = np.random.default_rng((seed, 2))
    room = context - wanted.max_new_tokens
    if texts.prompt_lengths.any():
        fits = (texts.prompt_lengths > 0) & (texts.prompt_lengths <= room)
        fitting = np.flatnonzero(fits)
        if not len(fitting):
            raise ValueError(
                f"max_new_tokens={wanted.max_new_tokens}: no prompt leaves that much of the "
                f"context of {context}"
            )
        chosen = fitting[_evenly(rng, len(fitting), wanted.count)]
        return [texts.prompt(index) for index in chosen]
    # A window begins as every text does.
    first = np.array(texts.beginning, np.int32)
    length = wanted.prompt_length - len(first)
    spans = (
        np.maximum(0, texts.lengths - wanted.prompt_length + 1) if length > 0 else 0 * texts.lengths
    )
    ends = np.cumsum(spans)
    if wanted.prompt_length > room or not ends[-1]:
        raise ValueError(
            f"prompt_length={wanted.prompt_length}, max_new_tokens={wanted.max_new_tokens}: texts "
            f"have up to {texts.lengths.max()} tokens, and the context is {context}: ask for less "
            "of both"
        )
    places = rng.integers(ends[-1], size=wanted.count)
    chosen = np.searchsorted(ends, places, side="right")
    starts = places - (ends - spans)[chosen] + len(first)
    pairs = zip(chosen, starts, strict=True)
    return [
        np.concatenate([first, texts[index].tokens[start : start + length]])
        for index, start in pairs
    ]


def _evenly(rng: np.random.Generator, size: int, count: int) -> np.ndarray:
    """`count` numbers below `size`, each as often as the others, or once more."""
    rounds = [rng.permutation(size) for _ in range(-(-count // size))]
    return np.concatenate(rounds)[:count]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _read(folder: Path) -> Iterator[Sample]:
    for file in sorted(folder.glob("part-*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                yield Sample(**json.loads(line))
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{file} does not hold samples ({error}): delete it, and they are generated "
                    "again"
                ) from error


def _write(folder: Path, part: Sequence[Sample]) -> None:
    """Writes a file whole or not at all, under a name that no other has; the first process does."""
    if part and jax.process_index() == 0:
        lines = (json.dumps(asdict(sample)) + "\n" for sample in part)
        write_text(folder / f"part-{uuid.uuid4().hex}.jsonl", "".join(lines))

"""The target's own text: written once, speculatively, kept on disk, gone on with after a stop."""

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jspec.core.prompts import prompts as ragged
from jspec.core.sampling import sampling
from jspec.distill.data import Document
from jspec.distill.progress import Show
from jspec.draft.protocol import Drafter
from jspec.formats.folder import claim
from jspec.models.protocol import Model, Params
from jspec.serving import generate_many

PART = 64  # answers to a file
MADE_BY = "made_by.json"


class Answer(NamedTuple):
    """What the target wrote after a prompt, at a temperature; `index` is the prompt's."""

    index: int
    prompt: list[int]
    tokens: list[int]
    temperature: float

    def document(self) -> Document:
        """A text whose prompt is only read."""
        weight = np.repeat([0.0, 1.0], [len(self.prompt), len(self.tokens)])
        return Document(np.array([*self.prompt, *self.tokens], np.int32), weight, self.temperature)


def answer(
    folder: Path,
    params: Params,
    draft: Params,
    prompts: Sequence[Sequence[int]],
    temperatures: np.ndarray,
    *,
    target: Model,
    drafter: Drafter,
    tokens: int,
    stops: Sequence[int] = (),
    batch: int = 8,
    seed: int = 0,
    made_by: Mapping[str, Any],
    show: Show,
) -> list[Answer]:
    """An answer to every prompt, in their order; those that `folder` holds are not made again.

    The text is the target's, whatever the draft, and an answer hangs on `seed`, its prompt and the
    prompt's place alone: a run that was stopped goes on to the same answers.

    Args:
      temperatures: `[n]`, one for each prompt.
      made_by: what else the answers hang on; a folder that was made by something else is refused.
    """
    hangs_on = {
        **made_by,
        "prompts": _digest(json.dumps([list(map(int, prompt)) for prompt in prompts]).encode()),
        "temperatures": _digest(temperatures.tobytes()),
        "tokens": tokens,
        "seed": seed,
    }
    claim(folder / MADE_BY, hangs_on, fixed=hangs_on, what="set of answers")
    found = {one.index: one for one in _read(folder)}
    missing = [index for index in range(len(prompts)) if index not in found]
    show(len(found))
    if missing:
        keys = jax.random.split(jax.random.key(seed), len(prompts))[np.array(missing)]
        rows = ragged(
            [prompts[index] for index in missing], context=target.config.context, tokens=tokens
        )
        wanted = sampling(len(missing), temperature=temperatures[missing].tolist(), stops=stops)
        part: list[Answer] = []
        try:
            for place, text in generate_many(
                params, draft, rows, keys, wanted,
                target=target, drafter=drafter, tokens=tokens, batch=batch,
            ):  # fmt: skip
                index = missing[place]
                ids = np.asarray(text.tokens)[0, : int(text.length[0])].tolist()
                prompt = list(map(int, prompts[index]))
                found[index] = Answer(index, prompt, ids, float(temperatures[index]))
                part.append(found[index])
                show(len(found))
                if len(part) == PART:
                    _write(folder, part)
                    part = []
        finally:
            # Those that are done are kept, whatever ends the rest.
            _write(folder, part)
    return [found[index] for index in range(len(prompts))]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _read(folder: Path) -> Iterator[Answer]:
    for file in sorted(folder.glob("part-*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                yield Answer(**json.loads(line))
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{file} does not hold answers ({error}): delete it, and they are made again"
                ) from error


def _write(folder: Path, part: Sequence[Answer]) -> None:
    """A file of its own, which is there whole or not at all; the first process writes it."""
    if part and jax.process_index() == 0:
        partial = folder / f".{uuid.uuid4().hex}.partial"
        lines = (json.dumps(one._asdict()) + "\n" for one in part)
        partial.write_text("".join(lines), encoding="utf-8")
        partial.rename(folder / f"part-{len(list(folder.glob('part-*.jsonl'))):05}.jsonl")

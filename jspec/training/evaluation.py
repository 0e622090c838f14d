"""What is measured while training: the loss on held-out text, and acceptance by decoding."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jspec.core.prompts import pad_prompts
from jspec.core.sampling import SamplingParams
from jspec.decode import generate
from jspec.draft.draft import Draft
from jspec.draft.protocol import Drafter
from jspec.models.protocol import Params
from jspec.training.data import Source, batch_at
from jspec.training.means import LOSS, add_means, read_means
from jspec.training.objectives import Objective
from jspec.training.recipe import Temperatures

BATCHES = 8
ACCEPTANCE_LENGTH = "acceptance_length"
SEED = 1


def held_out_loss(
    objective: Objective, frozen: Any, source: Source, batch_size: int, mesh: Mesh | None = None
) -> Callable[[Params], dict[str, float]]:
    """Measures the loss, and the objective's other means, over all targets of the first held-out
    batches.

    Raises `ValueError` if these hold no target.
    """
    compiled = jax.jit(lambda *args: objective(*args)[1])
    batches = [batch_at(source, number, batch_size, mesh) for number in range(BATCHES)]

    def measure(params: Params) -> dict[str, float]:
        found = read_means(add_means(compiled(params, frozen, batch) for batch in batches))
        if LOSS not in found:
            raise ValueError(
                f"text: none of {BATCHES * batch_size} held-out rows has a token to learn from: "
                "make sequence_length more than the prompts of these conversations"
            )
        return {f"held_out_{name}": value for name, value in found.items()}

    return measure


def decoding(
    student: Draft,
    rows: Sequence[np.ndarray],
    temperatures: Mapping[str, Temperatures],
    *,
    drafter: Drafter,
    max_new_tokens: int,
    stop_token_ids: Sequence[int],
) -> Callable[[Params], dict[str, float]]:
    """Measures by decoding, at each temperature T, a student with given parameters.

    `acceptance_length@T` is the mean number of tokens per target pass; `accepted_at_1@T` and so on
    are the shares of rounds that accept a draft token at that position.

    Args:
      rows: held-out prompts, which are decoded together.
      temperatures: by name.
      stop_token_ids: where a text ends, as it does when it is served.
    """
    target = student.target_model
    padded = pad_prompts(
        [row.tolist() for row in rows],
        context_length=target.config.max_position_embeddings,
        max_new_tokens=max_new_tokens,
    )
    keys = jax.random.split(jax.random.key(SEED), len(rows))
    params_at = {
        name: SamplingParams.create(
            len(rows),
            temperature=drawn.draw(SEED, len(rows)).tolist(),
            stop_token_ids=stop_token_ids,
        )
        for name, drawn in temperatures.items()
    }

    def measure(params: Params) -> dict[str, float]:
        numbers, draft = {}, student.with_params(params).params
        for name, sampling_params in params_at.items():
            text = generate(
                student.target.params, draft, padded, keys, sampling_params,
                target=target, drafter=drafter, max_new_tokens=max_new_tokens,
            )  # fmt: skip
            numbers[f"{ACCEPTANCE_LENGTH}@{name}"] = text.acceptance_length
            rounds = np.asarray(text.num_rounds).sum()
            accepted = np.asarray(text.accepted_by_position).sum(axis=0) / rounds
            for position, share in enumerate(accepted[1:], start=1):
                numbers[f"accepted_at_{position}@{name}"] = float(share)
        return numbers

    return measure


def mean_acceptance_length(numbers: Mapping[str, float]) -> float:
    """The mean over all temperatures."""
    named = [value for name, value in numbers.items() if name.startswith(ACCEPTANCE_LENGTH)]
    return float(np.mean(named))


def measure_all(
    *measures: Callable[[Params], Mapping[str, float]],
) -> Callable[[Params], dict[str, float]]:
    """One function that takes all these measurements."""
    return lambda params: {name: x for measure in measures for name, x in measure(params).items()}

"""What is measured while training: the loss on held-out text, and acceptance by decoding."""

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from jspec.core.prompts import prompts as ragged
from jspec.core.sampling import sampling
from jspec.decode import generate
from jspec.distill.data import Source, batch_at
from jspec.distill.objective import Objective
from jspec.distill.temperatures import Temperatures
from jspec.draft.protocol import Drafter
from jspec.models.protocol import Model, Params

BATCHES = 8
TOKENS_PER_ROUND = "tokens_per_round"
SEED = 1


def held_out_loss(
    objective: Objective, frozen: Params, source: Source, batch: int, mesh: Mesh | None = None
) -> Callable[[Params], dict[str, float]]:
    """The mean loss, and what else the objective measures, over the first held-out batches."""
    measure = jax.jit(objective)
    batches = [batch_at(source, number, batch, mesh) for number in range(BATCHES)]

    def found(params: Params) -> dict[str, float]:
        pairs = jax.device_get([measure(params, frozen, batch) for batch in batches])
        named = [{"loss": loss, **measures} for loss, measures in pairs]
        return {f"held_out_{name}": float(np.mean([x[name] for x in named])) for name in named[0]}

    return found


def decoding(
    target_params: Params,
    rows: Sequence[Sequence[int]],
    served: Mapping[str, Temperatures],
    *,
    target: Model,
    drafter: Drafter,
    drafting: Callable[[Params, Params], Params],
    tokens: int,
) -> Callable[[Params], dict[str, float]]:
    """Tokens a round, and the share of rounds that kept a node of each depth, by decoding.

    Args:
      rows: held-out prompts, all of which are written together.
      served: the temperatures of each measurement.
      drafting: what the drafter is given, from the student's parameters and the target's.
    """
    prompts = ragged(rows, context=target.config.context, tokens=tokens)
    keys = jax.random.split(jax.random.key(SEED), len(rows))
    wanted = {
        name: sampling(len(rows), temperature=temperatures.draw(SEED, len(rows)).tolist())
        for name, temperatures in served.items()
    }

    def found(params: Params) -> dict[str, float]:
        numbers, draft = {}, drafting(params, target_params)
        for name, temperatures in wanted.items():
            text = generate(
                target_params, draft, prompts, keys, temperatures,
                target=target, drafter=drafter, tokens=tokens,
            )  # fmt: skip
            numbers[f"{TOKENS_PER_ROUND}@{name}"] = text.tokens_per_round
            kept = np.asarray(text.kept_by_depth).sum(axis=0) / np.asarray(text.rounds).sum()
            for depth, share in enumerate(kept[1:], start=1):
                numbers[f"kept_{depth}@{name}"] = float(share)
        return numbers

    return found


def tokens_per_round(numbers: Mapping[str, float]) -> float:
    """The mean over what was served."""
    named = [value for name, value in numbers.items() if name.startswith(TOKENS_PER_ROUND)]
    return float(np.mean(named))


def both(
    *measures: Callable[[Params], Mapping[str, float]],
) -> Callable[[Params], dict[str, float]]:
    """What all of them find."""
    return lambda params: {name: x for measure in measures for name, x in measure(params).items()}

"""How near a queue of prompts comes to a batch that never empties."""

import time
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import jax
import numpy as np

from jspec.bench.suite import Method, Workload
from jspec.core.prompts import Prompts
from jspec.core.sampling import sampling
from jspec.decode import begin
from jspec.models.protocol import Model, Params
from jspec.serving import generate_many, until_one_is_done


@dataclass(frozen=True)
class Fullness:
    """Tokens a second, medians: of a queue from end to end, and of a batch that never empties.

    That one reads its prompts all at once, which counts by the share of their texts that it
    writes before a row is done.
    """

    method: str
    temperature: float
    prompts: int
    batch: int
    queue_rate: float
    full_rate: float

    @property
    def share(self) -> float:
        """What the queue reaches of the batch that never empties."""
        return self.queue_rate / self.full_rate

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "share": self.share}


def fullness(
    method: Method,
    target: Model,
    params: Params,
    prompts: Prompts,
    *,
    batch: int,
    tokens: int,
    temperature: float,
    repetitions: int,
) -> Fullness:
    """Times both in turns, after each has run once: all prompts through `generate_many`, and the
    first `batch` of them from their first round until one is done."""
    count = len(prompts.length)
    keys = jax.random.split(jax.random.key(0), count)
    law = sampling(count, temperature=temperature)
    models = {"target": method.reading(target), "drafter": method.drafter, "rule": method.rule}

    def queue() -> float:
        started = time.perf_counter()
        texts = generate_many(
            params, method.draft, prompts, keys, law, **models, tokens=tokens, batch=batch
        )
        written = sum(int(text.length.sum()) for _, text in texts)
        return written / (time.perf_counter() - started)

    def full() -> float:
        first = jax.tree.map(lambda x: x[:batch], (prompts, keys, law))
        started = time.perf_counter()
        state = jax.block_until_ready(
            begin(params, method.draft, first[0], **models, tokens=tokens)
        )
        before = int(np.sum(state.length))
        begun = time.perf_counter()
        state, _ = until_one_is_done(params, method.draft, state, *first[1:], **models)
        written = int(np.sum(state.length)) - before
        reading = (begun - started) * written / (len(first[1]) * tokens)
        return written / (reading + time.perf_counter() - begun)

    queue(), full()
    rates = [(queue(), full()) for _ in range(repetitions)]
    ours, ideal = (median(column) for column in zip(*rates, strict=True))
    return Fullness(method.name, temperature, count, batch, ours, ideal)


def ragged(work: Workload, *, shortest: int, seed: int) -> Prompts:
    """All prompts of a workload, each cut to a length of its own."""
    tokens = np.concatenate([np.asarray(batch.tokens) for batch in work.batches])
    whole = np.concatenate([np.asarray(batch.length) for batch in work.batches])
    lengths = np.random.default_rng(seed).integers(shortest, whole, endpoint=True)
    kept = np.arange(tokens.shape[1])[None] < lengths[:, None]
    return Prompts(np.where(kept, tokens, 0).astype(np.int32), lengths.astype(np.int32))

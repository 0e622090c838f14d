"""How near a queue of prompts comes to a batch that is always full."""

import time
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import jax
import numpy as np

from jspec.bench.suite import Method, Workload
from jspec.core.prompts import PaddedPrompts
from jspec.core.sampling import SamplingParams
from jspec.decode import budget, start_decoding
from jspec.models.protocol import Model, Params
from jspec.serving import generate_many, run_until_one_finishes


@dataclass(frozen=True)
class QueueThroughput:
    """Tokens per second, medians: of a queue from end to end, and of a batch that is always full.

    The full batch reads its prompts all at once, which counts by the share of their texts that it
    writes before a row finishes.
    """

    method: str
    temperature: float
    prompts: int
    batch: int
    tokens_per_second: float
    full_batch_tokens_per_second: float

    @property
    def utilisation(self) -> float:
        """The share of the full batch's speed that the queue reaches."""
        return self.tokens_per_second / self.full_batch_tokens_per_second

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "utilisation": self.utilisation}


def queue_throughput(
    method: Method,
    target: Model,
    params: Params,
    prompts: PaddedPrompts,
    *,
    batch: int,
    tokens: int,
    temperature: float,
    repetitions: int,
) -> QueueThroughput:
    """Times both in turns, after each has run once: all prompts through `generate_many`, and the
    first `batch` of them from their first round until one finishes."""
    count = len(prompts.length)
    keys = jax.random.split(jax.random.key(0), count)
    how = SamplingParams.create(count, temperature=temperature)
    models = {"target": method.reading(target), "drafter": method.drafter, "rule": method.rule}

    def queue() -> float:
        started = time.perf_counter()
        texts = generate_many(
            params,
            method.draft,
            prompts,
            keys,
            how,
            **models,
            max_new_tokens=tokens,
            batch_size=batch,
        )
        new = sum(int(text.length.sum()) for _, text in texts)
        return new / (time.perf_counter() - started)

    def full() -> float:
        first = jax.tree.map(lambda x: x[:batch], (prompts, keys, how))
        most, room = budget(tokens, first[0], target)
        started = time.perf_counter()
        state = jax.block_until_ready(
            start_decoding(params, method.draft, first[0], most, **models, room=room)
        )
        before = int(np.sum(state.length))
        begun = time.perf_counter()
        state, _ = run_until_one_finishes(params, method.draft, state, *first[1:], **models)
        new = int(np.sum(state.length)) - before
        reading = (begun - started) * new / (len(first[1]) * tokens)
        return new / (reading + time.perf_counter() - begun)

    queue(), full()
    rates = [(queue(), full()) for _ in range(repetitions)]
    ours, ideal = (median(column) for column in zip(*rates, strict=True))
    return QueueThroughput(method.name, temperature, count, batch, ours, ideal)


def mixed_lengths(work: Workload, *, shortest: int, seed: int) -> PaddedPrompts:
    """All prompts of a workload, each cut to a length of its own."""
    tokens = np.concatenate([np.asarray(batch.tokens) for batch in work.batches])
    whole = np.concatenate([np.asarray(batch.length) for batch in work.batches])
    lengths = np.random.default_rng(seed).integers(shortest, whole, endpoint=True)
    inside = np.arange(tokens.shape[1])[None] < lengths[:, None]
    return PaddedPrompts(np.where(inside, tokens, 0).astype(np.int32), lengths.astype(np.int32))

"""How long drafts take to guess, beside whole rounds: what makes drafts of several kinds equals.

Of each method two compiled loops are timed, all in turns: whole rounds of speculation, and nothing
but `propose`, from the dice to the candidates. A small model's late tokens are in as many of the
second loop's rounds as the first loop had.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from jspec.bench.rounds import ROUNDS, loops, seconds
from jspec.bench.suite import Method, Workload
from jspec.models.protocol import Model, Params


@dataclass(frozen=True)
class Latency:
    """Milliseconds a round, medians: of all of it, and of the draft's guesses."""

    method: str
    round_ms: float
    draft_ms: float


def latencies(
    methods: Sequence[Method],
    target: Model,
    params: Params,
    work: Workload,
    *,
    temperature: float,
    repetitions: int,
    tick: Callable[[], Any],
) -> list[Latency]:
    """Times drafts on the first batch of a workload, `repetitions` times each, in turns.

    Args:
      tick: told of every method that is compiled.
    """
    pairs = []
    for method in methods:
        compiled = loops(method, target, params, work, temperature)
        pairs.append((compiled.rounds, compiled.guesses))
        tick()
    times = [[tuple(map(seconds, pair)) for pair in pairs] for _ in range(repetitions)]
    found = []
    for method, runs in zip(methods, zip(*times, strict=True), strict=True):
        whole, guesses = (median(column) * 1e3 / ROUNDS for column in zip(*runs, strict=True))
        found.append(Latency(method.name, whole, guesses))
    return found

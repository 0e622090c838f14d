"""Interleaved timing: every repetition runs every method on every prompt, in turn; and the medians
of what was timed, with their spread."""

import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np

from jspec.bench.metrics import RoundCounts

PLAIN = "plain"
"""The name of plain decoding among the methods."""


@dataclass(frozen=True, eq=False)
class Run:
    """One timed generation: `tokens` `[B, T]`, and what its rounds accepted."""

    seconds: float
    tokens: np.ndarray
    counts: RoundCounts = RoundCounts()


class Runner(Protocol):
    """Something that writes text, ready to be timed."""

    name: str

    def __call__(self, batch: int, temperature: float) -> Run:
        """Continues one batch of prompts, and returns when all of the text is there."""


@dataclass(frozen=True, eq=False)
class Sample:
    """A run and its place in the grid."""

    method: str
    temperature: float
    batch: int
    repetition: int
    run: Run

    @classmethod
    def untimed(cls, method: str, temperature: float, tokens: Any) -> "Sample":
        """The text of the first batch, for functions that need no time."""
        return cls(method, temperature, 0, 0, Run(math.nan, np.asarray(tokens)))


def interleave(
    runners: Sequence[Runner],
    *,
    batches: int,
    temperatures: Sequence[float],
    repetitions: int,
    tick: Callable[[str], None],
    seconds: float = math.inf,
) -> list[Sample]:
    """Times all runners side by side, so that whatever slows the machine slows each of them.

    The runner that goes first changes from repetition to repetition.

    Args:
      batches: how many batches of prompts the runners hold.
      tick: hears what is timed, `repetitions * len(temperatures) * batches` times.
      seconds: after this long no further repetition begins; the first one always does.
    """
    samples: list[Sample] = []
    began = time.perf_counter()
    for repetition in range(repetitions):
        if samples and time.perf_counter() - began > seconds:
            break
        first = repetition % len(runners)
        order = [*runners[first:], *runners[:first]]
        for temperature in temperatures:
            for batch in range(batches):
                tick(f"timing, T={temperature:g}")
                samples += [
                    Sample(runner.name, temperature, batch, repetition, runner(batch, temperature))
                    for runner in order
                ]
    return samples


@dataclass(frozen=True)
class MethodResult:
    """A method at a temperature.

    Attributes:
      tokens_per_second: the median over repetitions, each over all prompts; `slowest` and
        `fastest` are the repetitions at the ends.
      speedup: the median over repetitions of the ratio to plain decoding in the same repetition.
      acceptance_length, acceptance_rate, acceptance_rate_drafted, wasted_levels_per_round: as
        `RoundCounts` defines them.
      identical: whether every token is plain decoding's; None where that cannot be expected.
    """

    method: str
    temperature: float
    tokens_per_second: float
    slowest: float
    fastest: float
    speedup: float
    acceptance_length: float | None
    acceptance_rate: float | None
    acceptance_rate_drafted: float | None
    wasted_levels_per_round: float | None
    identical: bool | None


def summarise(samples: Sequence[Sample], *, coupled: Sequence[str]) -> list[MethodResult]:
    """One result for each method and temperature, in the order in which they first ran.

    Args:
      coupled: the methods whose text must be plain decoding's at any temperature. At temperature 0
        that is expected of all.
    """
    found = []
    for temperature in dict.fromkeys(s.temperature for s in samples):
        here = [s for s in samples if s.temperature == temperature]
        plain, text = _rates(here, PLAIN), _texts(here, PLAIN)
        for method in dict.fromkeys(s.method for s in here if not s.repetition):
            rates = _rates(here, method)
            counts = sum((s.run.counts for s in here if s.method == method), RoundCounts())
            comparable = temperature == 0 or method in coupled
            found.append(
                MethodResult(
                    method,
                    temperature,
                    median(rates),
                    min(rates),
                    max(rates),
                    median(ours / theirs for ours, theirs in zip(rates, plain, strict=True)),
                    counts.acceptance_length,
                    counts.acceptance_rate,
                    counts.acceptance_rate_drafted,
                    counts.wasted_levels_per_round,
                    _texts(here, method) == text if comparable else None,
                )
            )
    return found


def best(
    results: Iterable[MethodResult], temperature: float, methods: Sequence[str]
) -> MethodResult:
    """The fastest of some methods at a temperature."""
    here = [one for one in results if one.temperature == temperature and one.method in methods]
    return max(here, key=lambda one: one.speedup)


def machine() -> dict[str, str | int]:
    """Device, cores and versions, for the line under a table."""
    import jax

    device = jax.devices()[0]
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "platform": device.platform,
        "device": _processor() if device.platform == "cpu" else device.device_kind,
        "devices": jax.device_count(),
        "cores": len(affinity(0)) if affinity else os.cpu_count() or 1,
        "jspec": metadata.version("jspec"),
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def _rates(samples: Sequence[Sample], method: str) -> list[float]:
    """Tokens per second of each repetition."""
    seconds: dict[int, float] = {}
    tokens: dict[int, int] = {}
    for sample in samples:
        if sample.method == method:
            place = sample.repetition
            seconds[place] = seconds.get(place, 0.0) + sample.run.seconds
            tokens[place] = tokens.get(place, 0) + sample.run.tokens.size
    return [tokens[place] / seconds[place] for place in sorted(seconds)]


def _texts(samples: Sequence[Sample], method: str) -> list[list[list[int]]]:
    runs = [s for s in samples if s.method == method and s.repetition == 0]
    return [s.run.tokens.tolist() for s in sorted(runs, key=lambda s: s.batch)]


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

"""Interleaved timing: every repetition runs every method on every prompt, in turn."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True, eq=False)
class Run:
    """One timed generation: `tokens` `[B, T]`, and how many `rounds` wrote them, all rows added.

    `rounds` is 0 where it is not known. Of the guesses, `kept` were, and `most` could have been had
    every round drafted as deep as the tree; `levels` were drafted, and `waited` were for others.
    """

    seconds: float
    tokens: np.ndarray
    rounds: int = 0
    kept: int = 0
    most: int = 0
    levels: int = 0
    waited: int = 0


class Runner(Protocol):
    """Something that writes text, ready to be timed."""

    name: str

    def __call__(self, batch: int, temperature: float) -> Run:
        """Writes on from one batch of prompts, and returns when all of it is there."""


@dataclass(frozen=True, eq=False)
class Sample:
    """A run and where it stands in the grid."""

    method: str
    temperature: float
    batch: int
    repetition: int
    run: Run

    @classmethod
    def untimed(cls, method: str, temperature: float, tokens: Any) -> "Sample":
        """Of the first batch, for what asks for the text alone."""
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
    """Times all runners side by side, so that what slows the machine slows each of them.

    The runner that goes first changes from repetition to repetition.

    Args:
      batches: how many batches of prompts the runners hold.
      tick: told what is being timed, `repetitions * len(temperatures) * batches` times.
      seconds: after this long no further repetition is begun; the first always is.
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

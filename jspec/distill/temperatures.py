"""Temperatures as people write them: one number, a set of them, or a range."""

import math
import re
from dataclasses import dataclass

import numpy as np

NUMBER = r"\d+(?:\.\d*)?|\.\d+"


@dataclass(frozen=True)
class Temperatures:
    """What a temperature may be: any of `values`, or, where there are none, `low` to `high`."""

    values: tuple[float, ...] = ()
    low: float = 0.0
    high: float = 0.0

    def draw(self, seed: int, count: int) -> np.ndarray:
        """One for each of `count` sequences, `[count]` float32; the same for the same seed."""
        rng = np.random.default_rng((seed, 1))
        if self.values:
            drawn = np.array(self.values)[rng.integers(len(self.values), size=count)]
        else:
            drawn = rng.uniform(self.low, self.high, size=count)
        return drawn.astype(np.float32)


def read_temperatures(name: str, text: str) -> Temperatures:
    """`1`, `0.7,0.8,0.9` or `0.3..1.5`; raises `ValueError`, naming the field, for others."""
    ends = re.fullmatch(rf"\s*({NUMBER})\s*\.\.\s*({NUMBER})\s*", text)
    if ends:
        low, high = map(float, ends.groups())
        if low < high < math.inf:
            return Temperatures(low=low, high=high)
    elif all(re.fullmatch(rf"\s*({NUMBER})\s*", part) for part in text.split(",")):
        return Temperatures(tuple(float(part) for part in text.split(",")))
    raise ValueError(
        f"{name}={text!r}: write a number from 0 on, a set such as 0.7,0.8,0.9, or a range such as "
        "0.3..1.5"
    )


def read_served(text: str) -> dict[str, Temperatures]:
    """What is measured one by one: the numbers of a set, or a whole range, by their names."""
    found = read_temperatures("served", text)
    if not found.values:
        return {f"{found.low:g}..{found.high:g}": found}
    return {f"{value:g}": Temperatures((value,)) for value in found.values}

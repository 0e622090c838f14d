"""Means over everything that counts: sums and counts travel, and are divided once.

A mean of the means of batches would weigh a batch that counts three tokens like one that counts
three thousand, and one that counts none as perfect.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

LOSS = "loss"


@struct.dataclass
class Mean:
    """A sum over the tokens that count, and how many do.

    >>> float((Mean(6.0, 2.0) + Mean(3.0, 1.0)).value)
    3.0

    Attributes:
      total: `[]` float32; count: `[]` float32, the sum of the tokens' weights.
      weight: of this mean in the loss; 0 for what is only logged.
    """

    total: Array
    count: Array
    weight: float = struct.field(pytree_node=False, default=0.0)

    @property
    def value(self) -> Array:
        """The mean; 0 where nothing counts."""
        return self.total / jnp.where(self.count > 0, self.count, 1.0)

    def __add__(self, other: "Mean") -> "Mean":
        """The mean over both."""
        return replace(self, total=self.total + other.total, count=self.count + other.count)


Means = Mapping[str, Mean]


def num_counted(means: Means) -> Array:
    """`[]` float32, the most that any part of the loss counts."""
    counts = [mean.count for mean in means.values() if mean.weight]
    return jnp.max(jnp.stack([jnp.float32(0), *counts]))


def add_means(batches: Iterable[Means]) -> Means:
    """The means over all batches."""
    total: dict[str, Mean] = {}
    for means in batches:
        for name, mean in means.items():
            total[name] = total[name] + mean if name in total else mean
    return total


def read_means(means: Means) -> dict[str, float]:
    """The numbers to log, with the `loss` first; what counts nothing is left out."""
    found = jax.device_get(means)
    known = {
        name: float(mean.total / mean.count) for name, mean in found.items() if mean.count != 0
    }
    parts = {name: found[name].weight for name in known if found[name].weight}
    if not parts:
        return known
    return {LOSS: sum(weight * known[name] for name, weight in parts.items()), **known}

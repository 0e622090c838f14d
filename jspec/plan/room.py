"""Whether a launch fits into the memory of a device, and what would if it does not."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from jspec.parallel.memory import GIGABYTE

MORE = "devices with more memory"


@dataclass(frozen=True)
class Room:
    """Bytes of memory that a device must have, `needed`, and those it has; None if nobody says.

    Attributes:
      weights: those of `needed` that do not hang on the `batch`.
      bytes: of a number.
      devices: how many share the launch; None where there are no more to be had.
      alone: bytes of `needed` that every device has whole, however many there are.
      most: how many can share it at most; None for any number.
    """

    needed: int
    there: int | None
    source: str
    weights: int
    batch: int
    bytes: int
    devices: int | None = None
    alone: int = 0
    most: int | None = None

    @property
    def fits(self) -> bool:
        """Whether it has enough, or nobody says that it has not."""
        return self.there is None or self.needed <= self.there

    def refusal(self) -> str:
        """By how much it does not fit, and what would."""
        over = self.needed - (self.there or 0)
        return (
            f"needs {self.needed / GIGABYTE:.2f} GB of each device, {over / GIGABYTE:.2f} GB "
            f"({over:,} bytes) more than there are: take {' or '.join(self._remedies()) or MORE}"
        )

    def _remedies(self) -> Iterator[str]:
        rows, there = self.needed - self.weights, self.there or 0
        fitting = int(self.batch * (there - self.weights) / rows) if rows else 0
        if fitting >= 1:
            yield f"a batch of {fitting}"
        if self.bytes > 2 and self.needed * 2 <= there * self.bytes:
            yield "bfloat16"
        if self.devices is None or not there:
            yield "other hardware, such as h100:2 or the TPU slice v5e:2x4"
        elif self.alone < there:
            shared = self.devices * (self.needed - self.alone)
            more = 2 ** math.ceil(math.log2(shared / (there - self.alone)))
            if self.most is None or more <= self.most:
                yield f"{more} such devices"

"""Accelerators that need not be there: what their makers say that they can do."""

from dataclasses import dataclass, replace

from jspec.parallel.memory import GIGABYTE


@dataclass(frozen=True)
class Accelerator:
    """One chip.

    Attributes:
      memory: bytes; bandwidth: bytes a second of it; rate: bfloat16 operations a second.
      link: bytes a second that it sends to the others at once.
      dispatch: seconds between one layer's operations and the next one's that are nobody's work.
        This alone no data sheet says: the numbers are round guesses, 20 us for GPUs, which launch a
        layer's kernels one by one, and 3 us for TPUs, which run a program as a whole.
      float32: operations a second of float32 numbers, as a share of `rate`.
      slices: how many chips a topology has to a side, as its names go, or none.
    """

    name: str
    memory: float
    bandwidth: float
    rate: float
    link: float
    dispatch: float
    float32: float = 1.0
    slices: str = ""

    def of(self, bytes: int) -> "Accelerator":
        """The same, its rate that of numbers of so many bytes."""
        return replace(self, rate=self.rate * self.float32) if bytes > 2 else self


def _tpu(
    name: str, memory: float, bandwidth: float, rate: float, link: float, slices: str
) -> Accelerator:
    return Accelerator(
        name, memory * 2**30, bandwidth * GIGABYTE, rate * 1e12, link * GIGABYTE, 3e-6,
        slices=slices,
    )  # fmt: skip


def _gpu(
    name: str, memory: float, bandwidth: float, rate: float, link: float, float32: float = 0.5
) -> Accelerator:
    return Accelerator(
        name, memory * GIGABYTE, bandwidth * GIGABYTE, rate * 1e12, link * GIGABYTE, 20e-6, float32
    )


# Memory in GiB (TPUs) or GB, bandwidth in GB/s, bfloat16 TFLOP/s (without sparsity; the T4's are of
# float16), and one direction of all links in GB/s. From docs.cloud.google.com/tpu (system
# architecture) and NVIDIA's data sheets of the SXM cards, the L4 and the T4. Of float32 jax
# multiplies bfloat16 parts on a TPU and TF32 on a GPU unless told otherwise; a T4 has no TF32.
ACCELERATORS = {
    one.name: one
    for one in (
        _tpu("v4", 32, 1228, 275, 300, "2x2x1"),
        _tpu("v5e", 16, 819, 197, 200, "2x4"),
        _tpu("v5p", 95, 2765, 459, 600, "2x2x1"),
        _tpu("v6e", 32, 1638, 918, 400, "2x4"),
        _gpu("a100", 80, 2039, 312, 300),
        _gpu("h100", 80, 3350, 989, 450),
        _gpu("h200", 141, 4800, 989, 450),
        _gpu("l4", 24, 300, 121, 32),
        _gpu("t4", 16, 320, 65, 16, 8.1 / 65),
    )
}


def accelerator(name: str) -> Accelerator:
    """The one of that name; raises `ValueError` with a list of those there are."""
    if name not in ACCELERATORS:
        raise ValueError(
            f"hardware={name!r} is not known: here, {', '.join(ACCELERATORS)}; also as h100:8 "
            "(eight of them) or v5e:2x4 (a TPU slice, for which programs are compiled)"
        )
    return ACCELERATORS[name]

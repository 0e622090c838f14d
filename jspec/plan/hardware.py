"""Hardware that need not be present: accelerators as their makers describe them, and TPU slices as
devices to compile for."""

import importlib.util
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from jspec.parallel.memory import GIGABYTE
from jspec.parallel.sharding import AXES

INSTALL = "pip install 'jspec[tpu]'"
# Without these libtpu asks the cloud which machine this is and waits for the answer, lets no other
# process load it, and warns of chips that nobody means to use.
QUIETLY = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
# Chips of one host, which bounds slices that are less than a host.
HOST = (2, 2, 1)


@dataclass(frozen=True)
class Accelerator:
    """One chip.

    Attributes:
      memory: bytes; bandwidth: bytes a second of it; rate: bfloat16 operations a second.
      link: bytes a second that it sends to the others at once.
      dispatch: seconds between one layer's operations and the next one's that do no work. No data
        sheet has it: the numbers are round estimates, 20 us for GPUs, which launch a layer's
        kernels one by one, and 3 us for TPUs, which run a program as a whole.
      float32: operations a second of float32 numbers, as a share of `rate`.
      slices: a topology of several chips, as its names are written; empty where there is none.
    """

    name: str
    memory: float
    bandwidth: float
    rate: float
    link: float
    dispatch: float
    float32: float = 1.0
    slices: str = ""

    def of(self, width: int) -> "Accelerator":
        """The same, its rate that of numbers of `width` bytes."""
        return replace(self, rate=self.rate * self.float32) if width > 2 else self


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
# architecture) and NVIDIA's data sheets of the SXM cards, the L4 and the T4. For float32 jax
# multiplies bfloat16 parts on a TPU and TF32 on a GPU by default; a T4 has no TF32.
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
    """The one of that name; raises `ValueError` with a list of the known ones.

    >>> accelerator("h100").memory
    80000000000.0
    """
    if name not in ACCELERATORS:
        raise ValueError(
            f"hardware={name!r} is not known: here, {', '.join(ACCELERATORS)}; also as h100:8 "
            "(eight of them) or v5e:2x4 (a TPU slice, for which programs are compiled)"
        )
    return ACCELERATORS[name]


def accelerators(hardware: str) -> tuple[Accelerator, int]:
    """The chip and how many there are of `h100` or `h100:8`."""
    name, _, count = hardware.partition(":")
    chip = accelerator(name)
    if count and (not re.fullmatch("[0-9]{1,4}", count) or not 1 <= int(count) <= 4096):
        raise ValueError(f"hardware={hardware!r}: write a number of them, as h100:8")
    return chip, int(count or 1)


def slice_of(hardware: str) -> tuple[Accelerator, tuple[int, ...]] | None:
    """The chip and the sides of `v5e:2x4`; None for what does not name a TPU slice."""
    name, colon, shape = hardware.partition(":")
    if not colon or not re.fullmatch(r"\d{1,4}(x\d{1,4}){1,2}", shape):
        return None
    chip = ACCELERATORS.get(name)
    if chip is None or not chip.slices:
        there = ", ".join(f"{one.name}:{one.slices}" for one in ACCELERATORS.values() if one.slices)
        raise ValueError(f"hardware={hardware!r} is no TPU slice: there are {there}, and larger")
    sides = tuple(map(int, shape.split("x")))
    if len(sides) != len(chip.slices.split("x")) or min(sides) < 1:
        raise ValueError(f"hardware={hardware!r}: slices of {name} are written as {chip.slices} is")
    return chip, sides


def devices_of(hardware: str) -> list[jax.Device]:
    """Devices of a TPU slice such as `v5e:2x4`, to lower and to compile for, and no more.

    Raises `ValueError` where libtpu, which compiles, is not installed, or knows no such slice.
    """
    chip, sides = slice_of(hardware)
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"hardware={hardware!r}: compiling for TPUs needs libtpu: {INSTALL}; without it "
            f"{chip.name}:{math.prod(sides)} is planned by what its maker says"
        )
    for name, value in QUIETLY.items():
        # What jax could not find out it writes down as a warning.
        if os.environ.get(name, "WARNING").startswith("WARNING"):
            os.environ[name] = value
    from jax.experimental import topologies

    # jax takes the two cores of a v4 for one device, and libtpu for two.
    options = {"chip_config_name": "megacore"} if chip.name == "v4" else {}
    if math.prod(sides) < math.prod(HOST):
        options["chips_per_host_bounds"] = (*sides, 1)[:3]
    name = f"{chip.name}:{'x'.join(map(str, sides))}"
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"hardware={hardware!r}: libtpu knows no such slice ({reason}); {chip.name}:"
            f"{chip.slices} is one"
        ) from error
    return list(found.devices)


def mesh_on(devices: list[jax.Device], sizes: Mapping[str, int]) -> Mesh:
    """A mesh of these devices, as `make_mesh` makes it of all devices of this machine; an axis that
    is not named has one. Raises `ValueError` where it is not as large as the slice."""
    shape = [sizes.get(axis, 1) for axis in AXES]
    if math.prod(shape) != len(devices):
        asked = ",".join(f"{axis}={size}" for axis, size in sizes.items())
        raise ValueError(
            f"mesh={asked!r} has {math.prod(shape)} devices, and the slice {len(devices)}: take "
            f"tensor={len(devices)}, or axes that multiply to it"
        )
    placed = np.array(devices).reshape(shape)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))

"""TPU slices that are not there, as devices to compile for."""

import importlib.util
import math
import os
import re
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from jspec.parallel.sharding import AXES
from jspec.plan.accelerators import ACCELERATORS, Accelerator

INSTALL = "pip install 'jspec[tpu]'"
# Else libtpu asks the cloud which machine this is and waits for the answer, lets no other process
# load it, and warns of chips that nobody means to use.
QUIETLY = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
# Chips of one host of each kind, which bounds slices that are less than a host.
HOST = (2, 2, 1)


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

    # Of a v4, whose two cores are one device unless somebody says otherwise, libtpu says otherwise.
    told = {"chip_config_name": "megacore"} if chip.name == "v4" else {}
    if math.prod(sides) < math.prod(HOST):
        told["chips_per_host_bounds"] = (*sides, 1)[:3]
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=_name(chip, sides), **told
        )
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"hardware={hardware!r}: libtpu knows no such slice ({reason}); {chip.name}:"
            f"{chip.slices} is one"
        ) from error
    return list(found.devices)


def mesh_on(devices: list[jax.Device], sizes: Mapping[str, int]) -> Mesh:
    """A mesh of devices, as `make_mesh` makes it of those that are there; of an axis that is not
    named there is one. Raises `ValueError` where it is not as large as the slice."""
    shape = [sizes.get(axis, 1) for axis in AXES]
    if math.prod(shape) != len(devices):
        asked = ",".join(f"{axis}={size}" for axis, size in sizes.items())
        raise ValueError(
            f"mesh={asked!r} has {math.prod(shape)} devices, and the slice {len(devices)}: take "
            f"tensor={len(devices)}, or axes that multiply to it"
        )
    laid = np.array(devices).reshape(shape)
    return Mesh(laid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _name(chip: Accelerator, sides: tuple[int, ...]) -> str:
    return f"{chip.name}:{'x'.join(map(str, sides))}"

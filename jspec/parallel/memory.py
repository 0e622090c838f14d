"""Whether arrays fit into the devices' memory, asked before anything is allocated."""

import math
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding

GIGABYTE = 1e9
MEMORY = Path("/proc/meminfo")
# What a container may use of it, and what it does.
LIMIT, USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
Demand = tuple[tuple[int, ...], np.dtype, NamedSharding | None]


def demand(what: str, arrays: Iterable[Demand]) -> None:
    """Raises `ValueError` if the arrays, given as shape, dtype and home, need more than is free.

    Args:
      what: they are, in words.
    """
    needed: dict[jax.Device, int] = {}
    for shape, dtype, home in arrays:
        devices = jax.local_devices()[:1] if home is None else home.addressable_devices
        piece = shape if home is None else home.shard_shape(shape)
        for device in devices:
            needed[device] = needed.get(device, 0) + math.prod(piece) * dtype.itemsize
    for place, asked, there in _compared(needed):
        if asked > there:
            raise ValueError(
                f"{what} need {asked / GIGABYTE:.2f} GB on {place}, where {there / GIGABYTE:.2f} "
                "GB are free: take bfloat16, a mesh that cuts them further, or a smaller model"
            )


def _compared(needed: dict[jax.Device, int]) -> Iterable[tuple[str, int, int]]:
    """Each place with the bytes needed there and those that are free, where that is known."""
    # All devices of a CPU share the host's memory.
    hosted = sum(size for device, size in needed.items() if device.platform == "cpu")
    free = free_here()
    if hosted and free is not None:
        yield "this host", hosted, free
    for device, size in needed.items():
        there = free_on(device)
        if device.platform != "cpu" and there is not None:
            yield str(device), size, there


def free_on(device: jax.Device) -> int | None:
    """Bytes that can be had where a device computes; None where that is not told."""
    if device.platform == "cpu":
        return free_here()
    stats = device.memory_stats() or {}
    return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None


def free_here() -> int | None:
    """Bytes of this host's memory that can be had; None where the system does not tell."""
    if not MEMORY.is_file():
        return None
    lines = MEMORY.read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
    free = int(kilobytes) * 1024
    limit = LIMIT.read_text().strip() if LIMIT.is_file() and USED.is_file() else ""
    return min(free, int(limit) - int(USED.read_text())) if limit.isdigit() else free

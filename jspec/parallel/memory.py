"""Whether arrays fit into the devices' memory, checked before anything is allocated."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

Device = Any  # type checkers do not take jax.Device for a type
GIGABYTE = 1e9
MEMORY = Path("/proc/meminfo")
# How much of it a container may use, and how much it uses.
LIMIT, USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
# Shape, dtype and sharding of an array; a sharding of None is the first local device.
ArraySpec = tuple[tuple[int, ...], np.dtype, NamedSharding | None]


def check_memory(what: str, arrays: Iterable[ArraySpec]) -> None:
    """Raises `ValueError` if arrays need more memory than is free.

    Args:
      what: names them in the error.
    """
    needed: dict[Device, int] = {}
    for shape, dtype, sharding in arrays:
        devices = jax.local_devices()[:1] if sharding is None else sharding.addressable_devices
        piece = shape if sharding is None else sharding.shard_shape(shape)
        for device in devices:
            needed[device] = needed.get(device, 0) + math.prod(piece) * dtype.itemsize
    for place, wanted, free in _by_place(needed):
        if wanted > free:
            raise ValueError(
                f"{what} need {wanted / GIGABYTE:.2f} GB on {place}, where {free / GIGABYTE:.2f} "
                "GB are free: take bfloat16, a mesh with more shards, or a smaller model"
            )


def _by_place(needed: dict[Device, int]) -> Iterable[tuple[str, int, int]]:
    """Each place with the bytes that are needed and free there, where the latter are known."""
    # All devices of a CPU share the host's memory.
    on_host = sum(size for device, size in needed.items() if device.platform == "cpu")
    free = free_host_memory()
    if on_host and free is not None:
        yield "this host", on_host, free
    for device, size in needed.items():
        free = free_memory(device)
        if device.platform != "cpu" and free is not None:
            yield str(device), size, free


def free_memory(device: Device) -> int | None:
    """Free bytes of a device's memory; None where they are not reported."""
    if device.platform == "cpu":
        return free_host_memory()
    stats = device.memory_stats() or {}
    return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None


def free_host_memory() -> int | None:
    """Free bytes of this host's memory; None where the system does not report them."""
    if not MEMORY.is_file():
        return None
    lines = MEMORY.read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
    free = int(kilobytes) * 1024
    limit = LIMIT.read_text().strip() if LIMIT.is_file() and USED.is_file() else ""
    return min(free, int(limit) - int(USED.read_text())) if limit.isdigit() else free

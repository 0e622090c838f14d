"""What a measurement was made on."""

import os
import platform
from importlib import metadata
from pathlib import Path


def machine() -> dict[str, str | int]:
    """Device, cores and versions, for the line under a table."""
    import jax

    device = jax.devices()[0]
    name = _processor() if device.platform == "cpu" else device.device_kind
    return {
        "platform": device.platform,
        "device": name,
        "devices": jax.device_count(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else _cores(),
        "jspec": metadata.version("jspec"),
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def _cores() -> int:
    return os.cpu_count() or 1


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

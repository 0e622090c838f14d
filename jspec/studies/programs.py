"""Compiled programs, of which a process can hold only so many."""

from pathlib import Path

import jax

MAPS = Path("/proc/self/maps")
MANY = 30_000


def drop_programs() -> None:
    """Forgets them where the process has made much of the 65,530 memory maps that Linux allows it:
    a program takes a thousand, and XLA dies of the last. They are compiled again when called."""
    if MAPS.is_file() and len(MAPS.read_bytes().splitlines()) > MANY:
        jax.clear_caches()

"""Notices that the machine is about to be taken away."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

Noticed = Callable[[int], bool]


@contextlib.contextmanager
def leaving(note: Callable[[str], None]) -> Iterator[None]:
    """Where nothing else listens to it, SIGTERM ends the process with 0, as a run that is told to
    stop does, once what is under way has kept what is done.

    Args:
      note: told of it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # where no signal arrives
        return

    def leave(*_: Any) -> None:
        note("stopped; the same command goes on with it")
        raise SystemExit(0)

    with _told(leave):
        yield


@contextlib.contextmanager
def watching() -> Iterator[Noticed]:
    """Yields a function of the step that says whether to save and stop, on all processes alike.

    One process listens to SIGTERM itself; of several, jax's coordinator tells all of them at which
    step to stop, once any has had a signal or a notice.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False  # where no signal arrives
        return
    with _told(lambda *_: told.set()):
        yield lambda step: told.is_set()


@contextlib.contextmanager
def _told(handler: Callable[..., None]) -> Iterator[None]:
    """Has SIGTERM handled so meanwhile."""
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

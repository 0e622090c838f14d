"""What people see: progress and tables on stderr, one JSON object on stdout."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

WIDTH = 110  # of tables where no terminal says how wide it is


def console() -> Console:
    """Standard error as it is now."""
    wide = None if sys.stderr.isatty() else WIDTH
    return Console(stderr=True, width=wide, highlight=False)


def emit(record: dict[str, Any]) -> None:
    """Prints a JSON object on stdout."""
    print(json.dumps(record, allow_nan=False), flush=True)


@contextlib.contextmanager
def waiting(note: str) -> Iterator[Callable[[], None]]:
    """Says what is being waited for; calling what it yields takes the note away early."""
    screen = console()
    if not screen.is_terminal:
        screen.print(note, soft_wrap=True)
        yield lambda: None
        return
    status = screen.status(note)
    status.start()
    try:
        yield status.stop
    finally:
        status.stop()


@contextlib.contextmanager
def steps(total: int) -> Iterator[Callable[[str], None]]:
    """A bar with the time left. Yields a function to call with a note before each step.

    Where there is no terminal, each note is a line of its own, unless it repeats the last one.
    """
    screen = console()
    if not screen.is_terminal:
        yield _lines(screen)
        return
    columns = (
        TextColumn("{task.fields[note]:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=screen, transient=True) as bar:
        task = bar.add_task("", total=total, note="")
        begun = False

        def tick(note: str) -> None:
            nonlocal begun
            bar.update(task, advance=1 if begun else 0, note=note, refresh=True)
            begun = True

        yield tick


def _lines(screen: Console) -> Callable[[str], None]:
    last = ""

    def tick(note: str) -> None:
        nonlocal last
        if note != last:
            screen.print(note, soft_wrap=True)
        last = note

    return tick

"""What all verbs share: their options, their exit codes, and what people see of them."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tyro.conf import arg

# Exit codes.
DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
WIDTH = 110  # of tables where no terminal says how wide it is
LAUNCH = (
    "Join the other processes of a launch, which SLURM, a TPU pod or JAX_COORDINATOR_ADDRESS, "
    "JAX_NUM_PROCESSES and JAX_PROCESS_ID describe."
)
Distributed = Annotated[bool, arg(help=LAUNCH)]


@dataclass(kw_only=True)
class Verb:
    """The options of every verb, and the method that `main` calls.

    The comment beside an option, or the text below it, is its help.
    """

    json: bool = False  # Print one JSON object on stdout and nothing else there.
    debug: bool = False  # Show the traceback of an error.

    def run(self) -> int:
        """Does the work and returns the exit code; raises ValueError or OSError for bad input."""
        raise NotImplementedError


def console() -> Console:
    """Standard error as it is now."""
    wide = None if sys.stderr.isatty() else WIDTH
    return Console(stderr=True, width=wide, highlight=False)


def say(*lines: str) -> None:
    """Prints lines on stderr as they are, however long."""
    console().print("\n".join(lines), soft_wrap=True, markup=False)


def emit(record: dict[str, Any]) -> None:
    """Prints a JSON object on stdout."""
    print(json.dumps(record, allow_nan=False), flush=True)


@contextlib.contextmanager
def waiting(note: str) -> Iterator[Callable[[], None]]:
    """Says what is being waited for; calling what it yields takes the note away early."""
    screen = console()
    if screen.is_terminal:
        with screen.status(note) as status:
            yield status.stop
    else:
        say(note)
        yield lambda: None


@contextlib.contextmanager
def steps(total: int) -> Iterator[Callable[[str], None]]:
    """A bar with the time left. Yields a function to call with a note before each step.

    Where there is no terminal, each note is a line of its own, unless it repeats the last one.
    """
    screen, last = console(), ""

    def line(note: str) -> None:
        nonlocal last
        if note != last:
            say(note)
        last = note

    if not screen.is_terminal:
        yield line
        return
    shown = TextColumn("{task.fields[note]:<28}"), BarColumn(), MofNCompleteColumn()
    with Progress(*shown, TimeRemainingColumn(), console=screen, transient=True) as bar:
        task = bar.add_task("", total=total, note="")

        def tick(note: str) -> None:
            nonlocal last
            bar.update(task, advance=1 if last else 0, note=note, refresh=True)
            last = note

        yield tick

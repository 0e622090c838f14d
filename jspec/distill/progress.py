"""A bar on stderr with the time left."""

import contextlib
from collections.abc import Callable, Iterator

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Show = Callable[[int, str], None]


@contextlib.contextmanager
def progress(name: str, total: int) -> Iterator[Show]:
    """Yields a function that is told how much of `total` is done, and a note, empty for the last.

    Where there is no terminal each note is a line, and so is every tenth of the whole; only the
    first process of several shows anything.
    """
    console = Console(stderr=True, quiet=jax.process_index() > 0, highlight=False)
    if not console.is_terminal:
        yield _lines(console, name, total)
        return
    columns = (
        TextColumn(name),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(name, total=total, note="")

        def show(done: int, note: str = "") -> None:
            bar.update(task, completed=done, **({"note": note} if note else {}))

        yield show


def _lines(console: Console, name: str, total: int) -> Show:
    tenth = -1

    def show(done: int, note: str = "") -> None:
        nonlocal tenth
        if note or 10 * done // total > tenth:
            tenth = 10 * done // total
            console.print(f"{name} {done}/{total} {note}".rstrip(), soft_wrap=True)

    return show

"""Pictures of a study on disk."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 6.4, 4.2  # inches of one panel
DOTS = 130  # an inch

# A file, its title, and what paints its panels.
Painting = tuple[str, str, Callable[[Sequence["Axes"]], None]]


def draw(paintings: Sequence[Painting], folder: Path, *, panels: int = 2) -> list[tuple[str, str]]:
    """Writes pictures of that many panels side by side below `folder`; the file and the title of
    each."""
    from matplotlib.figure import Figure

    for file, title, paint in paintings:
        size = panels * WIDTH, HEIGHT + 0.6
        figure = Figure(figsize=size, dpi=DOTS, layout="constrained")
        figure.suptitle(title)
        paint(figure.subplots(1, panels, squeeze=False)[0])
        partial = folder / f".{file}.partial"
        figure.savefig(partial, format="png")
        partial.replace(folder / file)
    return [(file, title) for file, title, _ in paintings]

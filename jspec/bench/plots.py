"""Figures on disk, and what their panels share."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from jspec.formats.folder import writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 6.4, 4.2  # inches of one panel
DOTS = 130  # per inch


class Mean(Protocol):
    """A mean, and half of its interval where there is one."""

    @property
    def value(self) -> float:
        """The mean."""
        ...

    @property
    def half(self) -> float | None:
        """Half of the interval's width."""
        ...


class Figure(NamedTuple):
    """A file, its title, and what paints its panels, side by side."""

    file: str
    title: str
    paint: Callable[[Sequence["Axes"]], None]
    panels: int = 2


def draw(figures: Iterable[Figure], folder: Path) -> list[Figure]:
    """Writes figures below `folder`, and returns them."""
    from matplotlib import figure as canvas

    drawn = list(figures)
    for one in drawn:
        size = one.panels * WIDTH, HEIGHT + 0.6
        picture = canvas.Figure(figsize=size, dpi=DOTS, layout="constrained")
        picture.suptitle(one.title)
        one.paint(picture.subplots(1, one.panels, squeeze=False)[0])
        with writing(folder / one.file) as partial:
            picture.savefig(partial, format="png")
    return drawn


def label(axes: "Axes", title: str, across: str, up: str, *, legend: bool = True) -> None:
    """Words, a grid and a legend."""
    axes.set_title(title, fontsize="small")
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.3)
    if legend:
        axes.legend(fontsize="small")


def line(axes: "Axes", across: Sequence[float], means: Sequence[Mean], **style: Any) -> None:
    """Means with their intervals."""
    values, halves = [one.value for one in means], [one.half or 0 for one in means]
    axes.errorbar(across, values, halves, **{"marker": ".", "capsize": 2, **style})


def bars(
    axes: "Axes", groups: Sequence[str], series: Mapping[str, Sequence[Mean]], first: int = 0
) -> None:
    """A bar with its interval for each of the series in every group, from the color `first` on."""
    width = 0.8 / len(series)
    for number, (name, means) in enumerate(series.items()):
        shift = (number - (len(series) - 1) / 2) * width
        axes.bar(
            [group + shift for group in range(len(groups))],
            [one.value for one in means],
            width,
            yerr=[one.half or 0 for one in means],
            color=f"C{number + first}",
            capsize=2,
            label=name,
        )
    axes.set_xticks(range(len(groups)), groups)
    axes.tick_params(labelsize="small")
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize="small")

"""Foretold chances against what became of the guesses, as pictures."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jspec.bench.calibration import Calibration
from jspec.studies import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(found: Sequence[Calibration], folder: Path) -> list[tuple[str, str]]:
    """One picture for each of the rules that keep guesses, a panel a temperature; the file and the
    title of each."""
    rules = dict.fromkeys(one.rule for one in found)
    temperatures = list(dict.fromkeys(one.temperature for one in found))
    paintings = [
        (
            f"calibration_{rule}.png",
            f"Guesses kept of those foretold, rule {rule}",
            functools.partial(_paint, [one for one in found if one.rule == rule], temperatures),
        )
        for rule in rules
    ]
    return plots.draw(paintings, folder, panels=len(temperatures))


def _paint(
    found: Sequence[Calibration], temperatures: Sequence[float], panels: Sequence["Axes"]
) -> None:
    for temperature, axes in zip(temperatures, panels, strict=True):
        axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
        for one in found:
            if one.temperature == temperature:
                axes.plot(
                    [here.chance for here in one.bins],
                    [here.kept for here in one.bins],
                    marker=".",
                    label=f"{one.name}, off by {one.error:.3f}",
                )
        axes.set(
            title=f"T={temperature:g}",
            xlabel="chance foretold",
            ylabel="share kept",
            xlim=(0, 1),
            ylim=(0, 1),
        )
        axes.legend(fontsize="small")

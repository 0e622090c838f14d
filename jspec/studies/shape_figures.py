"""Tokens a second against what might foretell it, as pictures."""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jspec.studies import plots
from jspec.studies.shape_findings import NUMBERS, Place, Standing
from jspec.studies.shape_recipe import DraftShapeStudy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORETOLD = "over plain, foretold"


def draw(
    recipe: DraftShapeStudy, found: Mapping[Place, Sequence[Standing]]
) -> list[tuple[str, str]]:
    """A picture for each target; the file and the title of each."""
    drawn = []
    for number, target in enumerate(dict.fromkeys(place.target for place in found)):
        here = {place: each for place, each in found.items() if place.target == target}
        painting = f"shapes_{number}.png", target, functools.partial(_paint, here)
        drawn += plots.draw([painting], recipe.folder, panels=1 + len(NUMBERS))
    return drawn


def _paint(found: Mapping[Place, Sequence[Standing]], panels: Sequence["Axes"]) -> None:
    numbers = {**NUMBERS, FORETOLD: lambda one: one.foretold}
    for axes, (what, number) in zip(panels, numbers.items(), strict=True):
        for place, each in found.items():
            label = f"T={place.served:g}, batch {place.batch}"
            axes.scatter([number(one) for one in each], [x.speedup for x in each], label=label)
        for one in next(iter(found.values())):
            axes.annotate(f" {one.draft}", (number(one), one.speedup), fontsize="x-small")
        axes.set(xlabel=what, ylabel="over plain")
        axes.legend(fontsize="small")

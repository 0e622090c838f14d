"""The temperature study as pictures that can be read without the text."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jspec.studies import plots
from jspec.studies.findings import matched
from jspec.studies.gauge import NODE_RULES, OVERLAP, PER_ROUND, at_node, decoded, methods
from jspec.studies.material import AWAY, HOME
from jspec.studies.recipe import TemperatureStudy
from jspec.studies.records import Records
from jspec.studies.temperature import SPEEDUP, UNTAUGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(recipe: TemperatureStudy, records: Records, folder: Path) -> list[tuple[str, str]]:
    """Writes the figures below `folder`; the file and the title of each."""
    drawn = [
        ("overlap.png", "Acceptance of one draw, taught against served", _overlap),
        ("gain.png", "What teaching gains over the untaught draft", _gain),
        ("rounds.png", "Tokens a round and speed, taught against served", _rounds),
        ("rules.png", "Rules at equal nodes, by temperature", _rules),
        ("control.png", "The draft sampled at another temperature", _control),
    ]
    paintings = [
        (file, title, functools.partial(paint, recipe, records)) for file, title, paint in drawn
    ]
    return plots.draw(paintings, folder)


def _overlap(recipe: TemperatureStudy, records: Records, panels: Sequence["Axes"]) -> None:
    kinds = [UNTAUGHT, *recipe.taught]
    for domain, axes in zip((HOME, AWAY), panels, strict=True):
        grid = _grid(recipe, records, kinds, domain, OVERLAP)
        _heat(axes, recipe, kinds, grid, f"sum of min(p, q), {domain}", "{:.3f}", "viridis")


def _gain(recipe: TemperatureStudy, records: Records, panels: Sequence["Axes"]) -> None:
    for domain, axes in zip((HOME, AWAY), panels, strict=True):
        grid = _grid(recipe, records, recipe.taught, domain, OVERLAP)
        gain = grid - _grid(recipe, records, [UNTAUGHT], domain, OVERLAP)
        title = f"gain in sum of min(p, q), {domain}"
        _heat(axes, recipe, recipe.taught, gain, title, "{:+.3f}", "RdBu", around_zero=True)


def _rounds(recipe: TemperatureStudy, records: Records, panels: Sequence["Axes"]) -> None:
    kinds = [UNTAUGHT, *recipe.taught]
    grid = _grid(recipe, records, kinds, HOME, PER_ROUND)
    title = f"tokens a round, coupled {recipe.tree}, {HOME}"
    _heat(panels[0], recipe, kinds, grid, title, "{:.2f}", "viridis")
    grid = _grid(recipe, records, kinds, HOME, SPEEDUP)
    title = "speed over plain decoding at the same T (seed 0)"
    _heat(panels[1], recipe, kinds, grid, title, "{:.2f}x", "viridis")


def _rules(recipe: TemperatureStudy, records: Records, panels: Sequence["Axes"]) -> None:
    measures = [
        {"one candidate, token level": OVERLAP, **{rule: at_node(rule) for rule in NODE_RULES}},
        {name: decoded(name) for name in methods(recipe.width)},
    ]
    titles = [
        f"accepted at one node, {recipe.width} candidates",
        f"tokens a round, {recipe.width} candidates a round",
    ]
    for axes, lines, title in zip(panels, measures, titles, strict=True):
        for number, (name, measure) in enumerate(lines.items()):
            for kind, style in ((recipe.reference, "-"), (UNTAUGHT, ":")):
                means = [records.mean(kind, HOME, t, measure) for t in recipe.served]
                label = f"{name}" if kind == recipe.reference else None
                axes.errorbar(
                    recipe.served,
                    [found.value for found in means],
                    [found.half or 0 for found in means],
                    linestyle=style,
                    color=f"C{number}",
                    marker=".",
                    label=label,
                )
        axes.set_title(f"{title}; solid: taught at {recipe.reference}, dotted: untaught")
        axes.title.set_fontsize("small")
        axes.set_xlabel("temperature of target and draft")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")


def _control(recipe: TemperatureStudy, records: Records, panels: Sequence["Axes"]) -> None:
    for kind, axes in zip((UNTAUGHT, recipe.reference), panels, strict=True):
        for number, served in enumerate(t for t in recipe.served if t):
            drawn = sorted(recipe.drawn)
            found = [records.mean(kind, HOME, served, OVERLAP, t).value for t in drawn]
            axes.plot(drawn, found, color=f"C{number}", marker=".", label=f"served at {served:g}")
            as_served = records.mean(kind, HOME, served, OVERLAP).value
            axes.plot([served], [as_served], color=f"C{number}", marker="o", markersize=9)
        axes.set_title(
            f"draft {'untaught' if kind == UNTAUGHT else f'taught at {kind}'}; "
            "the ring: draft and target at one temperature",
            fontsize="small",
        )
        axes.set_xlabel("temperature of the draft alone")
        axes.set_ylabel("sum of min(p, q)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")


def _grid(
    recipe: TemperatureStudy, records: Records, kinds: Sequence[str], domain: str, measure: str
) -> np.ndarray:
    return np.array(
        [[records.mean(kind, domain, t, measure).value for t in recipe.served] for kind in kinds]
    )


def _heat(
    axes: "Axes",
    recipe: TemperatureStudy,
    kinds: Sequence[str],
    grid: np.ndarray,
    title: str,
    text: str,
    colours: str,
    *,
    around_zero: bool = False,
) -> None:
    """A cell for every kind of draft and served temperature, its number inside; where the two
    temperatures are one, framed."""
    from matplotlib.patches import Rectangle

    most = float(np.abs(grid).max()) or 1.0
    ends: dict[str, Any] = {"vmin": -most, "vmax": most} if around_zero else {}
    image = axes.imshow(grid, cmap=colours, aspect="auto", **ends)
    for row, kind in enumerate(kinds):
        for column, served in enumerate(recipe.served):
            share = image.norm(grid[row, column])
            pale = abs(share - 0.5) < 0.3 if around_zero else share > 0.6
            axes.text(
                column,
                row,
                text.format(grid[row, column]),
                ha="center",
                va="center",
                color="black" if pale else "white",
                fontsize="small",
            )
            if kind == matched(recipe, served):
                axes.add_patch(
                    Rectangle(
                        (column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="red", linewidth=2
                    )
                )
    axes.set_xticks(range(len(recipe.served)), [f"{t:g}" for t in recipe.served])
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_xlabel("served at (target and draft)")
    axes.set_ylabel("taught at (answers and loss)")
    axes.set_title(f"{title}; framed: matched", fontsize="small")

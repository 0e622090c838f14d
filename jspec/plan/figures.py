"""Speed-up over draft latency and acceptance as a figure, and where drafts stand in it."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jspec.bench import plots
from jspec.core.tree import Tree
from jspec.plan.forecast import DEPTH, Forecast, chain_acceptance_length

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RATES = np.linspace(0.2, 0.98, 60)
LEVELS = np.linspace(0.005, 0.6, 60)
STEPS = 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0


def draw(found: Sequence[Forecast], file: Path) -> None:
    """A panel for each batch size: contours of the speed-up that chains give at their best depth,
    for the first draft's target, and each draft a point."""
    file.parent.mkdir(parents=True, exist_ok=True)
    batches = list(dict.fromkeys(one.batch for one in found))
    by_batch = [[one for one in found if one.batch == batch] for batch in batches]
    paint = functools.partial(_paint, by_batch)
    title = "Speed-up over plain decoding"
    plots.draw([plots.Figure(file.name, title, paint, len(batches))], file.parent)


def speedups(one: Forecast) -> np.ndarray:
    """`[levels, rates]` over plain decoding along the best chain, where drafting a level takes that
    share of a plain step and every draft token is accepted as often."""
    chains = [Tree.chain(depth) for depth in range(1, DEPTH + 1)]
    costs = np.array([one.costs.verification(tree.size) for tree in chains]) / one.costs.plain
    tokens = np.array(
        [[chain_acceptance_length(rate, tree.depth) for rate in RATES] for tree in chains]
    )
    depths = np.arange(1, DEPTH + 1)
    rounds = costs[:, None] + depths[:, None] * LEVELS[None]
    return (tokens[:, None, :] / rounds[:, :, None]).max(axis=0)


def rate_of(one: Forecast) -> float:
    """The acceptance rate at every depth with which the best chain emits as many tokens."""
    depth, wanted = one.chain.tree.depth, one.chain.acceptance_length
    rates = np.linspace(0, 1, 1001)
    return float(np.interp(wanted, [chain_acceptance_length(rate, depth) for rate in rates], rates))


def _paint(by_batch: Sequence[Sequence[Forecast]], panels: Sequence["Axes"]) -> None:
    for here, axes in zip(by_batch, panels, strict=True):
        lines = axes.contour(RATES, LEVELS, speedups(here[0]), levels=STEPS, cmap="viridis")
        axes.clabel(lines, fmt="%.2g")
        for one in here:
            place = rate_of(one), one.costs.draft_level() / one.costs.plain
            axes.plot(*place, "o", color="black")
            axes.annotate(f" {one.draft[:28]}", place, fontsize="small")
        axes.set(
            title=f"batch {here[0].batch}",
            xlabel="acceptance rate, the same at every depth",
            ylabel="drafting a level, in plain steps",
        )

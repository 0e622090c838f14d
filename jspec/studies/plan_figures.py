"""Speed-up over draft latency and acceptance, as a picture, and where drafts stand in it."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jspec.core.tree import Tree
from jspec.plan.gain import iid_tokens
from jspec.plan.outlook import DEPTH, Outlook
from jspec.studies import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RATES = np.linspace(0.2, 0.98, 60)
LEVELS = np.linspace(0.005, 0.6, 60)
STEPS = 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0


def draw(found: Sequence[Outlook], file: Path) -> None:
    """A panel for each batch size: contours of the speed-up that chains give at their best depth,
    for the first draft's target, and each draft a point."""
    file.parent.mkdir(parents=True, exist_ok=True)
    batches = list(dict.fromkeys(one.batch for one in found))
    by_batch = [[one for one in found if one.batch == batch] for batch in batches]
    painting = file.name, "Speed-up over plain decoding", functools.partial(_paint, by_batch)
    plots.draw([painting], file.parent, panels=len(batches))


def speedups(one: Outlook) -> np.ndarray:
    """`[levels, rates]` over plain decoding along the best chain, where one level of guesses takes
    that share of a plain step and all are kept as often."""
    chains = [Tree.chain(depth) for depth in range(1, DEPTH + 1)]
    spent = np.array([one.costs.verification(tree.size) for tree in chains]) / one.costs.plain
    kept = np.array([[iid_tokens(rate, tree.depth) for rate in RATES] for tree in chains])
    depths = np.arange(1, DEPTH + 1)
    rounds = spent[:, None] + depths[:, None] * LEVELS[None]
    return (kept[:, None, :] / rounds[:, :, None]).max(axis=0)


def rate_of(one: Outlook) -> float:
    """The acceptance that, the same at every depth, emits as many tokens over the best chain."""
    depth, wanted = one.chain.tree.depth, one.chain.tokens_per_round
    rates = np.linspace(0, 1, 1001)
    return float(np.interp(wanted, [iid_tokens(rate, depth) for rate in rates], rates))


def _paint(by_batch: Sequence[Sequence[Outlook]], panels: Sequence["Axes"]) -> None:
    for here, axes in zip(by_batch, panels, strict=True):
        lines = axes.contour(RATES, LEVELS, speedups(here[0]), levels=STEPS, cmap="viridis")
        axes.clabel(lines, fmt="%.2g")
        for one in here:
            place = rate_of(one), one.costs.guess() / one.costs.plain
            axes.plot(*place, "o", color="black")
            axes.annotate(f" {one.draft[:28]}", place, fontsize="small")
        axes.set(
            title=f"batch {here[0].batch}",
            xlabel="acceptance, the same at every depth",
            ylabel="a level of guesses, in plain steps",
        )

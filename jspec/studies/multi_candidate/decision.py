"""A draft's stop networks, from on-policy data to the calibration figure (`jspec decide`)."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jspec.bench import plots
from jspec.bench.calibration import Calibration, calibration
from jspec.studies.common.report import panels
from jspec.training.stop_network import LabelledTokens, TrainedNetwork, network_scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def calibrations(
    held_out: Mapping[float, LabelledTokens], trained: Mapping[str, TrainedNetwork]
) -> Iterator[Calibration]:
    """Of all that predicts whether a draft token is accepted, by the temperature at which the
    target generated, and by the rule."""
    for temperature, found in held_out.items():
        predicted = {
            f"{kind} network": network_scores(one.params, found.inputs[kind], network=one.network)
            for kind, one in trained.items()
        }
        for name, chance in {**predicted, **found.scores}.items():
            for rule, accepted in found.accepted.items():
                both = np.asarray(chance), np.asarray(accepted)
                yield calibration(*both, name=name, rule=rule, temperature=temperature)


def draw(found: Sequence[Calibration], folder: Path) -> list[tuple[str, str]]:
    """Writes one figure for each rule, a panel a temperature; the file and the title of each."""
    temperatures = list(dict.fromkeys(one.temperature for one in found))
    figures = []
    for rule in dict.fromkeys(one.rule for one in found):
        title = f"Draft tokens accepted of those predicted, rule {rule}"
        paint = functools.partial(_paint, [one for one in found if one.rule == rule])
        figures.append(panels(f"calibration_{rule}.png", title, temperatures, paint))
    return [(figure.file, figure.title) for figure in plots.draw(figures, folder)]


def _paint(found: Sequence[Calibration], axes: "Axes", temperature: float) -> None:
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    for one in found:
        if one.temperature == temperature:
            ends = [here.predicted for here in one.bins], [here.accepted for here in one.bins]
            axes.plot(*ends, marker=".", label=f"{one.name}, off by {one.error:.3f}")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    plots.label(axes, f"T={temperature:g}", "predicted probability", "share accepted")

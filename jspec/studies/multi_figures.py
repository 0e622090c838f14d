"""The multi-candidate study as pictures that can be read without the text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jspec.studies import plots
from jspec.studies.multi_findings import Drift
from jspec.studies.multi_gauge import OVER, PER_ROUND
from jspec.studies.multi_recipe import MultiCandidateStudy, Way
from jspec.studies.records import Records

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(
    recipe: MultiCandidateStudy, records: Records, drifted: Sequence[Drift]
) -> list[tuple[str, str]]:
    """Writes the figures below `output/name`; the file and the title of each."""
    by_temperature: list[plots.Painting] = [
        (
            "depth.png",
            "Speed of plain chains by their depth",
            lambda panels: _chains(recipe, records, panels),
        ),
        (
            "width.png",
            "Forks: the published method, which changes the text, and exact ones",
            lambda panels: _forks(recipe, records, panels),
        ),
    ]
    drifts: list[plots.Painting] = [
        (
            "drift.png",
            "What is written drifts with the width",
            lambda panels: _drift(drifted, panels),
        )
    ]
    return [
        *plots.draw(by_temperature, recipe.folder, panels=len(recipe.served)),
        *plots.draw(drifts, recipe.folder),
    ]


def _chains(recipe: MultiCandidateStudy, records: Records, panels: Sequence["Axes"]) -> None:
    for served, axes in zip(recipe.served, panels, strict=True):
        for rule in ("coupled", "token_level", "block"):
            speeds = [
                records.mean(Way(rule, f"chain:{depth}").name, "chains", served, OVER).value
                for depth in recipe.depths
            ]
            axes.plot(recipe.depths, speeds, marker=".", label=rule)
        axes.axhline(1, color="black", linewidth=0.8)
        _finish(axes, f"T={served:g}", "guesses a round", "times plain decoding")


def _forks(recipe: MultiCandidateStudy, records: Records, panels: Sequence["Axes"]) -> None:
    for served, axes in zip(recipe.served, panels, strict=True):
        for rule, group in (("lossy", "published"), ("coupled", "forks")):
            kept = [
                records.mean(
                    Way(rule, f"fork:{w}x{recipe.fork}").name, group, served, PER_ROUND
                ).value
                for w in recipe.widths
            ]
            axes.plot(recipe.widths, kept, marker=".", label=rule)
        _finish(axes, f"T={served:g}", "chains of a fork", "tokens a round")


def _drift(drifted: Sequence[Drift], panels: Sequence["Axes"]) -> None:
    told = [one for one in drifted if None not in (one.variation, one.equal)]
    names = [one.way.name for one in told]
    panels[0].barh(names, [one.variation for one in told])
    for one in told[:1]:
        panels[0].axvline(one.chance, color="black", linewidth=0.8)
    panels[0].set_xlabel("total variation of three tokens, T=1; line: an exact rule")
    panels[1].barh(names, [one.equal for one in told])
    panels[1].set_xlabel("greedy texts that are plain decoding's")
    for axes in panels:
        axes.invert_yaxis()
        axes.tick_params(labelsize="small")


def _finish(axes: "Axes", title: str, across: str, up: str) -> None:
    axes.set_title(title, fontsize="small")
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")

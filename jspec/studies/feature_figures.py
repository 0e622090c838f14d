"""The feature-draft study as pictures that can be read without the text."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from jspec.studies import plots
from jspec.studies.feature_findings import BASE, FeatureFindings, depths
from jspec.studies.feature_gauge import PER_ROUND, kept, on
from jspec.studies.material import AWAY, HOME
from jspec.studies.recipe import FeatureDraftStudy
from jspec.studies.records import Mean, Records

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Cell = Callable[[str, float, str], Mean]


def draw(
    recipe: FeatureDraftStudy, records: Records, found: FeatureFindings, names: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Writes the figures below `output/name`; the file and the title of each.

    Args:
      names: of the kinds, for people.
    """
    over = {(d.one, d.domain, d.served, d.measure): d.difference for d in found.over_base}

    def rounds(panels: Sequence["Axes"]) -> None:
        for domain, axes in zip((HOME, AWAY), panels, strict=True):
            _bars(
                axes, recipe, recipe.kinds, names,
                lambda kind, served, tree, domain=domain: records.mean(
                    kind, domain, served, on(PER_ROUND, tree)
                ),
            )  # fmt: skip
            axes.set_title(domain, fontsize="small")
            axes.set_ylabel("tokens a round")
            axes.set_ylim(bottom=1)

    def gains(panels: Sequence["Axes"]) -> None:
        kinds = [kind for kind in recipe.kinds if kind != BASE]
        for domain, axes in zip((HOME, AWAY), panels, strict=True):
            _bars(
                axes, recipe, kinds, names,
                lambda kind, served, tree, domain=domain: over[
                    kind, domain, served, on(PER_ROUND, tree)
                ],
                first=1,
            )  # fmt: skip
            axes.axhline(0, color="black", linewidth=0.8)
            axes.set_title(domain, fontsize="small")
            axes.set_ylabel("tokens a round over EAGLE's, seed by seed")

    paintings: list[plots.Painting] = [
        ("rounds.png", "Tokens a round by kind of head; 95% intervals over seeds", rounds),
        ("gains.png", "What each change brings; 95% intervals over seeds", gains),
    ]
    by_temperature: list[plots.Painting] = [
        (
            "depth.png",
            "Rounds that kept a node at each depth, in domain",
            lambda panels: _depths(recipe, records, names, panels),
        ),
        (
            "latency.png",
            "What a draft takes and what it brings, in domain",
            lambda panels: _latency(recipe, found, names, panels),
        ),
    ]
    return [
        *plots.draw(paintings, recipe.folder),
        *plots.draw(by_temperature, recipe.folder, panels=len(recipe.served)),
    ]


def _bars(
    axes: "Axes",
    recipe: FeatureDraftStudy,
    kinds: Sequence[str],
    names: Mapping[str, str],
    cell: Cell,
    *,
    first: int = 0,
) -> None:
    """A group for every temperature and tree, a bar in it for every kind."""
    places = [(served, tree) for served in recipe.served for tree in (recipe.tree, recipe.growth)]
    width = 0.8 / len(kinds)
    for number, kind in enumerate(kinds):
        found = [cell(kind, *place) for place in places]
        axes.bar(
            [group + (number - (len(kinds) - 1) / 2) * width for group in range(len(places))],
            [one.value for one in found],
            width,
            yerr=[one.half or 0 for one in found],
            color=f"C{number + first}",
            capsize=2,
            label=names[kind],
        )
    axes.set_xticks(range(len(places)), [f"T={served:g}\n{tree}" for served, tree in places])
    axes.tick_params(labelsize="small")
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize="small")


def _depths(
    recipe: FeatureDraftStudy,
    records: Records,
    names: Mapping[str, str],
    panels: Sequence["Axes"],
) -> None:
    for served, axes in zip(recipe.served, panels, strict=True):
        for tree, style in ((recipe.tree, ":"), (recipe.growth, "-")):
            levels = depths(records, tree)
            for number, kind in enumerate(recipe.kinds):
                found = [
                    records.mean(kind, HOME, served, on(kept(depth), tree)) for depth in levels
                ]
                axes.errorbar(
                    levels,
                    [one.value for one in found],
                    [one.half or 0 for one in found],
                    linestyle=style,
                    color=f"C{number}",
                    marker=".",
                    capsize=2,
                    label=names[kind] if style == "-" else None,
                )
            axes.set_xticks(levels)
        axes.set_title(
            f"T={served:g}; solid: {recipe.growth}, dotted: {recipe.tree}", fontsize="small"
        )
        axes.set_xlabel("depth; below 1 the head reads features that it guessed")
        axes.set_ylabel("share of rounds")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")


def _latency(
    recipe: FeatureDraftStudy,
    found: FeatureFindings,
    names: Mapping[str, str],
    panels: Sequence["Axes"],
) -> None:
    marks = {recipe.tree: "o", recipe.growth: "^"}
    for served, axes in zip(recipe.served, panels, strict=True):
        for number, draft in enumerate((*recipe.kinds, *recipe.drafts)):
            here = [one for one in found.standings if (one.draft, one.served) == (draft, served)]
            for rank, one in enumerate(here):
                at = one.draft_ms, one.per_round.value
                label = None if rank else names.get(draft, draft)
                mark = marks[one.tree] if draft in recipe.kinds else "s"
                axes.scatter(*at, color=f"C{number}", marker=mark, label=label)
                if mark == "s":
                    axes.annotate(
                        one.tree, at, xytext=(4, 4), textcoords="offset points", fontsize="xx-small"
                    )
        axes.set_title(
            f"T={served:g}; heads: round {recipe.tree}, triangle {recipe.growth}; square: models",
            fontsize="small",
        )
        axes.set_xlabel("milliseconds a round that the draft takes")
        axes.set_ylabel("tokens a round")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")

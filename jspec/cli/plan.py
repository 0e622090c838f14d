"""`jspec plan`: which draft, which tree, and what they will gain, before anything is trained."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from rich.table import Table

from jspec.bench import settings
from jspec.cli.verb import DONE, Verb, console, emit, say, steps
from jspec.core.tree_text import write_tree
from jspec.parallel.memory import GIGABYTE
from jspec.plan import figures
from jspec.plan.forecast import Forecast
from jspec.plan.planner import PlanRequest, plan

COLUMNS = (
    "size", "batch", "ms per level", "best tree", "acceptance length", "tokens/s", "over plain",
    "ties at", "GB",
)  # fmt: skip
TITLE = (
    "Predicted; a draft ties, with this acceptance at every depth, with the first of its batch, "
    "and the first with plain decoding"
)
LONG = 16  # letters of a tree that is shown in full
MOST = 100  # steps that are reported, at most, in practice


@dataclass(kw_only=True)
class Plan(Verb):
    """Predict what drafts will gain, on this machine or on one that is not there."""

    target: str = settings.TARGET
    """zoo:target, a local Hugging Face folder, a hub name, or a known shape such as llama3.1-8b."""
    drafts: tuple[str, ...] = ("zoo:distilled", "zoo:wide")
    """Trained ones as --target; known shapes; heads of the target (eagle, fspad, eagle3); or shapes
    in words: layers=2,width=1024,heads=8."""
    hardware: str = "here"
    """`here` is measured; v5e:2x4 is compiled for, which needs libtpu; h100, or h100:8 for eight,
    is planned by what its maker says."""
    batch: tuple[int, ...] = (1,)  # Texts that are decoded together; several sizes for a line each.
    context: int = 256  # Tokens of a text, one half of them prompt.
    temperature: float = 0.0  # At which acceptance and rounds are measured here.
    acceptance: str = ""
    """How often draft tokens are accepted: 0.8, or 0.8,0.7,0.6 by depth, or a JSON file; `measured`
    measures it here by decoding. Empty: measured where it can be, for `here`, else 0.7."""
    mesh: str = ""  # Such as data=2,tensor=4; empty for tensor= all chips.
    dtype: Literal["", "float32", "bfloat16", "float16"] = ""
    """Of weights and caches; empty for float32 here and bfloat16 elsewhere."""
    replicate_draft: bool = False  # Whether every device has the whole draft.
    search: bool = False  # Rank draft shapes as well, within --parameters or --latency.
    parameters: str = ""  # The budget of a search: 2M, 800M, 1.5B.
    latency: float = 0.0  # Milliseconds that one level of drafting may take, in a search.
    picture: Path | None = None
    """Where to draw speed-up over draft latency and acceptance, each draft a point: a .png."""

    def run(self) -> int:
        """Predicts, and shows what was found."""
        if self.picture is not None and self.picture.suffix != ".png":
            raise ValueError(f"picture={str(self.picture)!r}: name a file that ends in .png")
        request = PlanRequest(**{one.name: getattr(self, one.name) for one in fields(PlanRequest)})
        with steps(MOST) as tick:
            found = plan(request, tick)
        pictures = []
        if self.picture is not None:
            figures.draw(found, self.picture)
            pictures = [str(self.picture)]
        if self.json:
            about = {"target": self.target, "hardware": self.hardware, "context": self.context}
            drafts = [one.record() for one in found]
            emit({**about, "drafts": drafts, "pictures": pictures})
            return DONE
        console().print(_table(found))
        costs = [f"costs {one.costs.source}" for one in found]
        acceptance = [f"acceptance {one.acceptance.source}" for one in found]
        say(
            *(f"{one.draft}, batch {one.batch}: {_summary(one)}" for one in found),
            *dict.fromkeys(costs + acceptance),
            *(f"drawn to {file}" for file in pictures),
        )
        return DONE


def _summary(one: Forecast) -> str:
    if not one.memory.fits:
        return one.memory.refusal()
    pays = "pays" if one.best.low > 1 else "may pay" if one.best.speedup > 1 else "does not pay"
    limit = "none" if one.pays_up_to is None else f"those up to {one.pays_up_to}"
    batches = ""
    if len(one.batches) > 1:
        origin = one.batches_source.partition(":")[0].partition(" (")[0]
        batches = (
            f"; by costs that are {origin}, of batches of {one.batches[0]} to {one.batches[-1]} "
            f"chains pay in {limit}"
        )
    return f"{pays}; bound by {one.bottleneck}{batches}"


def _table(found: Sequence[Forecast]) -> Table:
    from jspec.bench.report import grid

    table = grid(TITLE, ["draft"], COLUMNS)
    for one in found:
        best, tree = one.best, write_tree(one.best.tree)
        table.add_row(
            one.draft,
            _count(one.parameters),
            str(one.batch),
            f"{one.costs.draft_level():.3g}",
            tree if len(tree) <= LONG else f"{tree[: LONG - 3]}...",
            f"{best.acceptance_length:.2f}",
            f"{best.tokens_per_second:,.0f}",
            f"{best.speedup:.2f}\n{best.low:.2f}..{best.high:.2f}",
            "-" if one.needed_acceptance is None else f"{one.needed_acceptance:.2f}",
            f"{one.memory.needed / GIGABYTE:.2f}" + ("" if one.memory.fits else " too much"),
        )
    return table


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f}B" if parameters >= 1e9 else f"{parameters / 1e6:.3g}M"

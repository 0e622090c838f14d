"""`jspec plan`: which draft, which tree, and what they will gain, before anything is trained."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jspec.bench import settings
from jspec.cli.contenders import contender, planned_target
from jspec.cli.held_out import check_counts, check_temperatures
from jspec.cli.planning import HERE, MEASURED, check_measurable, outlooks_of, searched, sources_of
from jspec.cli.screen import console, emit, steps
from jspec.cli.verb import DONE, Verb

if TYPE_CHECKING:
    from rich.table import Table

    from jspec.plan.outlook import Outlook

COLUMNS = (
    "size", "batch", "ms a guess", "best tree", "tokens/round", "tokens/s", "over plain",
    "ties at", "GB",
)  # fmt: skip
TITLE = (
    "Foretold; a draft ties, kept as often as this at every depth, with the first of its batch, "
    "and the first with plain decoding"
)
LONG = 16  # letters of a tree that is shown in full
MOST = 100  # steps that are told of, at most, to speak of


@dataclass(kw_only=True)
class Plan(Verb):
    """Foretell what drafts will gain, on this machine or on one that is not there."""

    target: str = settings.TARGET
    """zoo:target, a local Hugging Face folder, a hub name, or a known shape such as llama3.1-8b."""
    drafts: tuple[str, ...] = ("zoo:distilled", "zoo:wide")
    """Trained ones as --target; known shapes; heads of the target (eagle, fspad, eagle3); or shapes
    in words: layers=2,width=1024,heads=8,feedforward=4096."""
    hardware: str = HERE
    """`here` is measured; v5e:2x4 is compiled for, which needs libtpu; h100, or h100:8 for eight,
    is planned by what its maker says."""
    batch: tuple[int, ...] = (1,)
    """Texts that are written together; several sizes for a line each."""
    context: int = 256
    """Tokens of a text, one half of them prompt."""
    temperature: float = 0.0
    """At which acceptance and rounds are measured here."""
    acceptance: str = ""
    """How often guesses are kept: 0.8, or 0.8,0.7,0.6 by depth, or a JSON file; `measured` measures
    it here by decoding. Empty: measured where it can be, for `here`, else 0.7 is assumed."""
    mesh: str = ""
    """Such as data=2,tensor=4; empty for tensor= all chips."""
    dtype: Literal["", "float32", "bfloat16", "float16"] = ""
    """Of weights and caches; empty for float32 here and bfloat16 elsewhere."""
    replicate_draft: bool = False
    """Whether every device has all of the draft."""
    search: bool = False
    """Rank draft shapes as well, within --parameters or --latency."""
    parameters: str = ""
    """The budget of a search: 2M, 800M, 1.5B."""
    latency: float = 0.0
    """Milliseconds that one level of guesses may take, in a search."""
    picture: Path | None = None
    """Where to draw speed-up over draft latency and acceptance, each draft a point: a .png."""

    def run(self) -> int:
        from jspec.plan.outlook import ranked

        self._check()
        needs_weights = self.hardware == HERE or self.acceptance == MEASURED
        target = planned_target(self.target, self.numbers, weights=needs_weights)
        drafts = [contender(name, target, self.numbers) for name in self.drafts]
        check_measurable(self, target, drafts)
        with steps(MOST) as tick:
            sources = sources_of(self, target, tick)
            if self.search:
                drafts += searched(self, target, sources)
            each = [outlooks_of(self, target, draft, sources, tick) for draft in drafts]
        found = [one for told in each for one in told]
        rows = [
            one
            for batch in self.batch
            for one in ranked(each for each in found if each.batch == batch)
        ]
        if not any(one.room.fits for one in rows):
            least = min(rows, key=lambda one: one.room.needed)
            raise ValueError(
                f"hardware={self.hardware!r}: {self.target} with {least.draft} at batch "
                f"{least.batch} {least.room.refusal()}"
            )
        self._report(rows)
        return DONE

    @property
    def numbers(self) -> str:
        """The type of weights and caches."""
        return self.dtype or ("float32" if self.hardware == HERE else "bfloat16")

    def _check(self) -> None:
        from jspec.plan.imagined import read_count
        from jspec.plan.published import SHAPES

        for batch in self.batch:
            check_counts(batch=batch)
        if not self.batch or len(set(self.batch)) < len(self.batch):
            raise ValueError(f"batch={self.batch}: give at least one, and each once")
        if self.context < 2:
            raise ValueError(f"context={self.context}: a prompt and what follows are at least 2")
        check_temperatures((self.temperature,))
        if not self.drafts and not self.search:
            raise ValueError("drafts is empty: name at least one, or --search")
        if len(set(self.drafts)) < len(self.drafts):
            raise ValueError(f"drafts={' '.join(self.drafts)!r}: name each once")
        if self.hardware == HERE and self.mesh:
            raise ValueError(
                f"mesh={self.mesh!r}: what is measured here is one device; name other hardware for "
                "a mesh"
            )
        if self.latency < 0 or math.isnan(self.latency):
            raise ValueError(f"latency={self.latency}: milliseconds, 0 for no limit")
        if self.search and not (self.parameters or self.latency):
            raise ValueError("search has no budget: give --parameters 2M or --latency 0.5")
        if self.search and not self.parameters and self.hardware == HERE:
            raise ValueError(
                f"latency={self.latency}: here every shape would have to be timed, so give "
                "--parameters as well, or other --hardware"
            )
        if self.parameters:
            read_count(self.parameters)
        if (self.parameters or self.latency) and not self.search:
            raise ValueError(
                f"parameters={self.parameters!r}, latency={self.latency}: these are of a search: "
                "add --search"
            )
        if self.acceptance == MEASURED and self.target in SHAPES:
            raise ValueError(
                f"acceptance='measured': of {self.target} there is a shape alone here, and no "
                "weights: name a folder or a hub name, or give numbers, such as 0.7"
            )
        if self.picture is not None and self.picture.suffix != ".png":
            raise ValueError(f"picture={str(self.picture)!r}: name a file that ends in .png")

    def _report(self, rows: "list[Outlook]") -> None:
        """A table and a sentence for each draft on stderr, or one object on stdout."""
        pictures = self._draw(rows)
        if self.json:
            emit(
                {
                    "target": self.target,
                    "hardware": self.hardware,
                    "context": self.context,
                    "drafts": [one.record() for one in rows],
                    "pictures": pictures,
                }
            )
            return
        screen = console()
        screen.print(_table(rows))
        for one in rows:
            screen.print(f"{one.draft}, batch {one.batch}: {_verdict(one)}", soft_wrap=True)
        for what in dict.fromkeys(f"costs {one.costs.source}" for one in rows):
            screen.print(what, soft_wrap=True)
        for what in dict.fromkeys(f"acceptance {one.acceptance.source}" for one in rows):
            screen.print(what, soft_wrap=True)
        for file in pictures:
            screen.print(f"drawn to {file}", soft_wrap=True)

    def _draw(self, rows: "list[Outlook]") -> list[str]:
        from jspec.studies import plan_figures

        if self.picture is None:
            return []
        plan_figures.draw(rows, self.picture)
        return [str(self.picture)]


def _verdict(one: "Outlook") -> str:
    if not one.room.fits:
        return one.room.refusal()
    pays = "pays" if one.best.low > 1 else "may pay" if one.best.speedup > 1 else "does not pay"
    limit = "none" if one.pays_to is None else f"those up to {one.pays_to}"
    batches = ""
    if len(one.batches) > 1:
        whose = one.batches_source.partition(":")[0].partition(" (")[0]
        batches = (
            f"; by costs that are {whose}, of batches of {one.batches[0]} to {one.batches[-1]} "
            f"chains pay in {limit}"
        )
    return f"{pays}; bound by {one.bound}{batches}"


def _table(rows: "list[Outlook]") -> "Table":
    from rich.table import Table

    from jspec.core.tree_text import write_tree
    from jspec.parallel.memory import GIGABYTE

    grid = Table(title=TITLE, title_justify="left", title_style="bold")
    grid.add_column("draft", overflow="fold")
    for name in COLUMNS:
        grid.add_column(name, justify="right")
    for one in rows:
        best = one.best
        grid.add_row(
            one.draft,
            _count(one.parameters),
            str(one.batch),
            f"{one.costs.guess():.3g}",
            _short(write_tree(best.tree)),
            f"{best.tokens_per_round:.2f}",
            f"{best.tokens_per_second:,.0f}",
            f"{best.speedup:.2f}\n{best.low:.2f}..{best.high:.2f}",
            "-" if one.needed is None else f"{one.needed:.2f}",
            f"{one.room.needed / GIGABYTE:.2f}" + ("" if one.room.fits else " too much"),
        )
    return grid


def _short(text: str) -> str:
    return text if len(text) <= LONG else f"{text[: LONG - 3]}..."


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f}B" if parameters >= 1e9 else f"{parameters / 1e6:.3g}M"

"""All that a benchmark found, for people and for programs."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from jspec.bench import peers
from jspec.bench.agreement import Difference
from jspec.bench.breakdown import Breakdown
from jspec.bench.fullness import Fullness
from jspec.bench.scores import Foresight
from jspec.bench.suite import PLAIN
from jspec.bench.summary import Row, best
from jspec.bench.table import table


@dataclass(frozen=True)
class Report:
    """Figures and where they come from; `compile_seconds` are by method, apart from the rest, and
    `scores` by draft."""

    rows: Sequence[Row]
    differences: Sequence[Difference]
    breakdowns: Sequence[Breakdown]
    queues: Sequence[Fullness]
    scores: Sequence[tuple[str, Foresight]]
    compile_seconds: dict[str, float]
    setting: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "results": [asdict(row) for row in self.rows],
            "against_transformers": list(self._against()),
            "differences": [difference.record() for difference in self.differences],
            "breakdown": [breakdown.record() for breakdown in self.breakdowns],
            "queue": [queue.record() for queue in self.queues],
            "scores": [{"draft": draft, **found.record()} for draft, found in self.scores],
            "compile_seconds": self.compile_seconds,
            "setting": self.setting,
        }

    def show(self, screen: Console) -> None:
        """Prints tables, what they were measured on, and every difference of texts."""
        about = self.setting
        screen.print(table(self._shown(), "Interleaved, medians over repetitions", spread=True))
        screen.print(
            f"{about['device']}, {about['cores']} cores, jax {about['jax']}, {about['dtype']}, "
            f"batch {about['batch']}, context {about['context']}; target {about['target']}; "
            f"{about['prompts']} prompts of {about['prompt_tokens']} tokens, "
            f"{about['new_tokens']} new ones, {about['repetitions']} repetitions; compiled in "
            f"{sum(self.compile_seconds.values()):.0f} s, not counted",
            style="dim",
        )
        for ratio in self._against():
            screen.print(
                f"T={ratio['temperature']:g}: plain is {ratio['plain_over_generate']:.2f} times "
                f"transformers generate"
                + (
                    f", the best speculation {ratio['speculative_over_assisted']:.2f} times its "
                    "assisted generation"
                    if "speculative_over_assisted" in ratio
                    else ""
                )
            )
        for difference in self.differences:
            screen.print(str(difference))
        if self.breakdowns:
            screen.print(_parts(self.breakdowns))
        if self.scores:
            screen.print(_scores(self.scores))
        for queue in self.queues:
            screen.print(
                f"{queue.method} at T={queue.temperature:g}: {queue.prompts} prompts of mixed "
                f"lengths through a batch of {queue.batch}: {queue.queue_rate:.0f} tokens/s, "
                f"{queue.share:.2f} of the {queue.full_rate:.0f} of a batch that never empties"
            )

    def _shown(self) -> list[Row]:
        """All rows of ours, and of each way of transformers the best number of threads."""
        ways = {row.method: peers.way(row.method) for row in self.rows}
        return [
            row
            for row in self.rows
            if ways[row.method] is None
            or row == best(self.rows, row.temperature, _same(ways, ways[row.method]))
        ]

    def _against(self) -> Iterator[dict[str, Any]]:
        """How many times as fast as transformers, by temperature, each at its best."""
        ways = {row.method: peers.way(row.method) for row in self.rows}
        generate = _same(ways, peers.PLAIN)
        assisted = [m for m, way in ways.items() if way and way.startswith(peers.ASSISTED)]
        speculative = [m for m in self.compile_seconds if m != PLAIN]
        for temperature in dict.fromkeys(row.temperature for row in self.rows):
            if not generate:
                return

            def rate(methods: Sequence[str], temperature: float = temperature) -> float:
                return best(self.rows, temperature, methods).tokens_per_second

            ratios = {"plain_over_generate": rate([PLAIN]) / rate(generate)}
            if assisted and speculative:
                ratios["speculative_over_assisted"] = rate(speculative) / rate(assisted)
            yield {"temperature": temperature, **ratios}


def _same(ways: dict[str, str | None], way: str | None) -> list[str]:
    return [method for method, its in ways.items() if its == way]


def _parts(breakdowns: Sequence[Breakdown]) -> Table:
    """Where the time of a round goes."""
    grid = Table(title="A round, in milliseconds", title_justify="left", title_style="bold")
    grid.add_column("method")
    for name in ("T", "whole", "forward passes", "outside them", "the draft's guesses"):
        grid.add_column(name, justify="right")
    for part in breakdowns:
        grid.add_row(
            part.method,
            f"{part.temperature:g}",
            f"{part.round_ms:.2f}",
            f"{part.forwards_ms:.2f}",
            f"{part.outside:.1%}",
            f"{part.guesses_ms:.2f}",
        )
    return grid


def _scores(scores: Sequence[tuple[str, Foresight]]) -> Table:
    """What the draft gave to the tokens that the target picked."""
    grid = Table(title="Mean log-probability of the target's picks", title_justify="left")
    grid.title_style = "bold"
    grid.add_column("draft")
    for name in ("T", "coupled", "one sample", "law", "EAGLE-2's", "best error", "with it"):
        grid.add_column(name, justify="right")
    for draft, one in scores:
        said = one.coupled, one.one_sample, one.law, one.unwarped, one.error, one.fitted
        grid.add_row(draft, f"{one.temperature:g}", *(f"{number:.3f}" for number in said))
    return grid

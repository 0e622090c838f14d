"""Everything that a benchmark found, as tables for people and as JSON for programs."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from jspec.bench import peers
from jspec.bench.agreement import Difference
from jspec.bench.breakdown import Breakdown
from jspec.bench.calibration import ScoreFit
from jspec.bench.throughput import QueueThroughput
from jspec.bench.timing import PLAIN, MethodResult, best


@dataclass(frozen=True)
class Report:
    """Figures and where they come from.

    Attributes:
      scores: by the name of the draft.
      compile_seconds: by method, not part of any other figure.
    """

    results: Sequence[MethodResult]
    differences: Sequence[Difference]
    breakdowns: Sequence[Breakdown]
    queues: Sequence[QueueThroughput]
    scores: Sequence[tuple[str, ScoreFit]]
    compile_seconds: dict[str, float]
    setting: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "results": [asdict(one) for one in self.results],
            "against_transformers": list(self._against()),
            "differences": [one.record() for one in self.differences],
            "breakdown": [one.record() for one in self.breakdowns],
            "queue": [one.record() for one in self.queues],
            "scores": [{"draft": draft, **one.record()} for draft, one in self.scores],
            "compile_seconds": self.compile_seconds,
            "setting": self.setting,
        }

    def show(self, screen: Console) -> None:
        """Prints tables, what they were measured on, and every difference of texts."""
        about = self.setting
        screen.print(method_table(self.shown(), "Interleaved, medians of repetitions", spread=True))
        screen.print(
            f"{about['device']}, {about['cores']} cores, jax {about['jax']}, {about['dtype']}, "
            f"batch {about['batch']}, context {about['context']}; target {about['target']}; "
            f"{about['prompts']} prompts of {about['prompt_tokens']} tokens, "
            f"{about['new_tokens']} new ones, {about['repetitions']} repetitions; compiled in "
            f"{sum(self.compile_seconds.values()):.0f} s, not counted",
            style="dim",
        )
        for ratio in self._against():
            assisted = ratio.get("speculative_over_assisted")
            screen.print(
                f"T={ratio['temperature']:g}: plain is {ratio['plain_over_generate']:.2f} times "
                "transformers generate"
                + (
                    f", the best speculation {assisted:.2f} times its assisted generation"
                    if assisted
                    else ""
                )
            )
        for difference in self.differences:
            screen.print(str(difference))
        if self.breakdowns:
            screen.print(_breakdown_table(self.breakdowns))
        if self.scores:
            screen.print(_score_table(self.scores))
        for queue in self.queues:
            screen.print(
                f"{queue.method} at T={queue.temperature:g}: {queue.prompts} prompts of mixed "
                f"lengths through a batch of {queue.batch}: {queue.tokens_per_second:.0f} "
                f"tokens/s, {queue.utilisation:.2f} of the "
                f"{queue.full_batch_tokens_per_second:.0f} of a batch that is always full"
            )

    def shown(self) -> list[MethodResult]:
        """All results of ours, and of each method of transformers the best number of threads."""
        names = {one.method: peers.peer_method(one.method) for one in self.results}
        return [
            one
            for one in self.results
            if names[one.method] is None
            or one == best(self.results, one.temperature, _same(names, names[one.method]))
        ]

    def _against(self) -> Iterator[dict[str, Any]]:
        """How many times as fast as transformers, by temperature, each at its best."""
        names = {one.method: peers.peer_method(one.method) for one in self.results}
        generate = _same(names, peers.PLAIN)
        assisted = [m for m, name in names.items() if name and name.startswith(peers.ASSISTED)]
        speculative = [m for m in self.compile_seconds if m != PLAIN]
        for temperature in dict.fromkeys(one.temperature for one in self.results):
            if not generate:
                return

            def rate(methods: Sequence[str], temperature: float = temperature) -> float:
                return best(self.results, temperature, methods).tokens_per_second

            ratios = {"plain_over_generate": rate([PLAIN]) / rate(generate)}
            if assisted and speculative:
                ratios["speculative_over_assisted"] = rate(speculative) / rate(assisted)
            yield {"temperature": temperature, **ratios}


def grid(title: str, texts: Sequence[str], numbers: Iterable[str]) -> Table:
    """An empty table with left-aligned columns of text and right-aligned ones of numbers."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in texts:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def method_table(results: Sequence[MethodResult], title: str, *, spread: bool) -> Table:
    """One line a result, a rule between temperatures; `spread` adds the slowest and the fastest.

    Where drafting stops early there are also the acceptance rate of the drafted levels, and the
    levels that a round drafted for other rows.
    """
    early = any(one.acceptance_rate_drafted != one.acceptance_rate for one in results)
    wasted = any(one.wasted_levels_per_round for one in results)
    columns = ["T", "tokens/s", *(["slowest..fastest"] if spread else []), "speed-up"]
    columns += ["acceptance length", "acceptance rate", *(["of drafted"] if early else [])]
    table = grid(title, ["method"], (*columns, *(["wasted"] if wasted else []), "same text"))
    for number, one in enumerate(results):
        following = results[number + 1 : number + 2]
        table.add_row(
            one.method,
            f"{one.temperature:g}",
            f"{one.tokens_per_second:.0f}",
            *([f"{one.slowest:.0f}..{one.fastest:.0f}"] if spread else []),
            f"{one.speedup:.2f}x",
            _figure(one.acceptance_length),
            _figure(one.acceptance_rate),
            *([_figure(one.acceptance_rate_drafted)] if early else []),
            *([_figure(one.wasted_levels_per_round)] if wasted else []),
            {True: "yes", False: "no", None: "-"}[one.identical],
            end_section=bool(following) and following[0].temperature != one.temperature,
        )
    return table


def _breakdown_table(breakdowns: Sequence[Breakdown]) -> Table:
    """Where the time of a round goes."""
    columns = "T", "whole", "drafting", "forward passes", "outside them"
    table = grid("A round, in milliseconds", ["method"], columns)
    for one in breakdowns:
        table.add_row(
            one.method,
            f"{one.temperature:g}",
            f"{one.round_ms:.2f}",
            f"{one.draft_ms:.2f}",
            f"{one.forwards_ms:.2f}",
            f"{one.overhead:.1%}",
        )
    return table


def _score_table(scores: Sequence[tuple[str, ScoreFit]]) -> Table:
    """What scores gave to the tokens that the target picked."""
    columns = "T", "coupled", "one sample", "draft", "EAGLE-2's", "best error", "with it"
    table = grid("Mean log-probability of the target's picks", ["draft"], columns)
    for draft, one in scores:
        numbers = (
            one.coupled, one.one_sample, one.by_draft, one.eagle2, one.error_scale, one.fitted
        )  # fmt: skip
        table.add_row(draft, f"{one.temperature:g}", *(f"{number:.3f}" for number in numbers))
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _same(names: dict[str, str | None], name: str | None) -> list[str]:
    return [method for method, own in names.items() if own == name]

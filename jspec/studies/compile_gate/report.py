"""What a person reads of the compile gate."""

from collections.abc import Iterator, Sequence
from typing import Any

from jspec.parallel.memory import GIGABYTE
from jspec.studies.common.recipe import Experiment
from jspec.studies.common.report import Report, table
from jspec.studies.compile_gate.measure import Compiled, measure
from jspec.studies.compile_gate.recipe import CompileGateStudy, Launch

COLUMNS = (
    "target", "draft", "slice", "mesh", "passes", "GB to generate", "GB to train",
    "read over weights and cache", "seconds to compile", "compiled by",
)  # fmt: skip


class CompileGateReport(Report[CompileGateStudy, Sequence[Compiled]]):
    """Which launches pass, and what their programs take."""

    title = "Which launches compile"

    def answers(self) -> Iterator[str]:
        """As `Report.answers`."""
        yield f"{sum(one['passed'] for one in self.found)} of {len(self.found)} launches pass."
        for one in self.found:
            if not one["passed"]:
                launch = "/".join(one[field] for field in Launch._fields)
                wrong = [f"{x['program']} {x['problem']}" for x in one["programs"] if x["problem"]]
                yield f"{launch}: {'; '.join(filter(None, [*wrong, one['refused']]))}"

    def _computed(self) -> dict[str, Any]:
        return {"launches": self.found}

    def _setting(self) -> str:
        recipe = self.recipe
        # Those that were compiled earlier may be of other versions.
        versions = "; ".join(
            dict.fromkeys(f"{one['versions']}, {one['date']}" for one in self.found)
        )
        return (
            "Prefill, refill, what puts a newcomer into a slot, a round of five nodes, commit, the "
            "whole of a generation and a training step, compiled from shapes for TPU slices that "
            f"are not there ({versions}), in bfloat16: {recipe.batch} texts for each copy of the "
            f"weights, prompts of {recipe.prompt_length} tokens and {recipe.max_new_tokens} new "
            f"ones; {recipe.rows} rows of {recipe.length} tokens a step for each part of a batch. "
            "A launch passes if all fit a chip's memory, seat, round, commit and step write over "
            "what they are given, commit exchanges nothing, and a round reads no more than 1.15 "
            "times weights and caches. Reported on"
        )

    def _sections(self) -> Iterator[tuple[str, Iterator[str]]]:
        yield "Launches", table(COLUMNS, map(_row, self.found))


def passed(found: Sequence[Compiled]) -> bool:
    """Whether all launches pass."""
    return all(one["passed"] for one in found)


def _row(one: Compiled) -> list[str]:
    by_name = {program["program"]: program for program in one["programs"]}
    step, once = by_name.get("step"), by_name.get("round")
    serving = [program["memory"] for name, program in by_name.items() if name != "step"]
    return [
        *(one[field] for field in Launch._fields),
        "yes" if one["passed"] else "no",
        f"{max(serving) / GIGABYTE:.2f}" if serving else "",
        f"{step['memory'] / GIGABYTE:.2f}" if step else "",
        f"{once['read_ratio']:.2f}" if once and once["read_ratio"] is not None else "",
        f"{sum(program['seconds'] for program in one['programs']):.0f}",
        f"{one['versions']}, {one['date']}",
    ]


EXPERIMENT = Experiment(CompileGateStudy, measure, CompileGateReport.write, passed)

"""What a person reads of the compile gate."""

from collections.abc import Iterator, Sequence
from typing import Any

from jspec.bench.machine import machine
from jspec.formats.folder import write_json, write_text
from jspec.parallel.memory import GIGABYTE
from jspec.studies.compile_gate import Verdict
from jspec.studies.gate_recipe import CompileGate
from jspec.studies.writing import table

COLUMNS = (
    "target", "draft", "slice", "mesh", "passes", "GB to generate", "GB to distil",
    "read over weights and cache", "seconds to compile", "compiled by",
)  # fmt: skip


def write(recipe: CompileGate, found: Sequence[Verdict]) -> list[str]:
    """Writes report and numbers below `output/name`; the answers."""
    said = list(_answers(found))
    write_json(
        recipe.folder / "results.json",
        {
            "study": recipe.record(),
            "setting": machine(),
            "findings": said,
            "cells": [_record(one) for one in found],
        },
    )
    write_text(recipe.folder / "report.md", "\n".join(_lines(recipe, found, said)) + "\n")
    return said


def passed(found: Sequence[Verdict]) -> bool:
    """Whether all launches pass."""
    return all(one.passed for one in found)


def _answers(found: Sequence[Verdict]) -> Iterator[str]:
    count = sum(one.passed for one in found)
    yield f"{count} of {len(found)} launches pass."
    for one in found:
        if not one.passed:
            yield f"{one.cell.name}: {_wrong(one)}"


def _wrong(one: Verdict) -> str:
    told = [f"{program.program} {program.wrong}" for program in one.programs if program.wrong]
    return "; ".join([*told, *([one.refused] if one.refused else [])])


def _record(one: Verdict) -> dict[str, Any]:
    programs = [program.record() for program in one.programs]
    return {
        **one.cell._asdict(),
        "passed": one.passed,
        "refused": one.refused,
        "versions": one.versions,
        "date": one.date,
        "programs": programs,
    }


def _lines(recipe: CompileGate, found: Sequence[Verdict], said: Sequence[str]) -> Iterator[str]:
    # Those that were compiled earlier may be of other versions.
    versions = "; ".join(dict.fromkeys(f"{one.versions}, {one.date}" for one in found))
    yield "# Which launches compile\n"
    yield (
        f"Prefill, refill, what seats a newcomer, a round of five nodes, commit, the whole of a "
        f"generation and a step of distillation, compiled from shapes for TPU slices that are not "
        f"there ({versions}), in bfloat16: {recipe.batch} texts for each copy of the weights, "
        f"prompts of {recipe.prompt} tokens and {recipe.tokens} new ones; {recipe.rows} rows of "
        f"{recipe.length} tokens a step for each part of a batch. A launch passes if all fit a "
        "chip's memory, seat, round, commit and step write over what they are given, commit "
        "exchanges nothing, and a round reads no more than 1.15 times weights and caches."
    )
    yield "\n## What was found\n"
    yield from (f"- {line}" for line in said)
    yield "\n## Launches\n"
    yield from table(COLUMNS, map(_row, found))


def _row(one: Verdict) -> list[str]:
    by_name = {program.program: program for program in one.programs}
    step, once = by_name.get("step"), by_name.get("round")
    serving = [program.memory for name, program in by_name.items() if name != "step"]
    return [
        *one.cell,
        "yes" if one.passed else "no",
        f"{max(serving) / GIGABYTE:.2f}" if serving else "",
        f"{step.memory / GIGABYTE:.2f}" if step else "",
        f"{once.read:.2f}" if once and once.read is not None else "",
        f"{sum(program.seconds for program in one.programs):.0f}",
        f"{one.versions}, {one.date}",
    ]

"""What a person reads of the compile gate."""

from collections.abc import Iterator, Sequence
from typing import Any

from jspec.parallel.memory import GIGABYTE
from jspec.studies.common.recipe import Experiment
from jspec.studies.common.report import publish, table
from jspec.studies.compile_gate.measure import Compiled, measure
from jspec.studies.compile_gate.recipe import CompileGateStudy

COLUMNS = (
    "target", "draft", "slice", "mesh", "passes", "GB to generate", "GB to train",
    "read over weights and cache", "seconds to compile", "compiled by",
)  # fmt: skip


def write(recipe: CompileGateStudy, found: Sequence[Compiled]) -> list[str]:
    """Writes report and numbers below `output/name`; the answers."""
    said = list(_answers(found))
    publish(
        recipe,
        title="Which launches compile",
        setting=_setting(recipe, found),
        findings=said,
        sections=["\n## Launches\n", *table(COLUMNS, map(_row, found))],
        computed={"launches": [_record(one) for one in found]},
    )
    return said


def passed(found: Sequence[Compiled]) -> bool:
    """Whether all launches pass."""
    return all(one.passed for one in found)


def _answers(found: Sequence[Compiled]) -> Iterator[str]:
    yield f"{sum(one.passed for one in found)} of {len(found)} launches pass."
    for one in found:
        if not one.passed:
            wrong = [f"{x.program} {x.problem}" for x in one.programs if x.problem]
            yield f"{one.launch.name}: {'; '.join(filter(None, [*wrong, one.refused]))}"


def _record(one: Compiled) -> dict[str, Any]:
    return {
        **one.launch._asdict(),
        "passed": one.passed,
        "refused": one.refused,
        "versions": one.versions,
        "date": one.date,
        "programs": [program.record() for program in one.programs],
    }


def _setting(recipe: CompileGateStudy, found: Sequence[Compiled]) -> str:
    # Those that were compiled earlier may be of other versions.
    versions = "; ".join(dict.fromkeys(f"{one.versions}, {one.date}" for one in found))
    return (
        f"Prefill, refill, what puts a newcomer into a slot, a round of five nodes, commit, the "
        f"whole of a generation and a training step, compiled from shapes for TPU slices that are "
        f"not there ({versions}), in bfloat16: {recipe.batch} texts for each copy of the weights, "
        f"prompts of {recipe.prompt_length} tokens and {recipe.max_new_tokens} new ones; "
        f"{recipe.rows} rows of {recipe.length} tokens a step for each part of a batch. A launch "
        "passes if all fit a chip's memory, seat, round, commit and step write over what they are "
        "given, commit exchanges nothing, and a round reads no more than 1.15 times weights and "
        "caches. Reported on"
    )


def _row(one: Compiled) -> list[str]:
    by_name = {program.program: program for program in one.programs}
    step, once = by_name.get("step"), by_name.get("round")
    serving = [program.memory for name, program in by_name.items() if name != "step"]
    return [
        *one.launch,
        "yes" if one.passed else "no",
        f"{max(serving) / GIGABYTE:.2f}" if serving else "",
        f"{step.memory / GIGABYTE:.2f}" if step else "",
        f"{once.read_ratio:.2f}" if once and once.read_ratio is not None else "",
        f"{sum(program.seconds for program in one.programs):.0f}",
        f"{one.versions}, {one.date}",
    ]


EXPERIMENT = Experiment(CompileGateStudy, measure, write, passed)

"""What a study found, for people in `report.md` and for programs in `results.json`."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jspec.bench.plots import Figure
from jspec.bench.timing import machine
from jspec.formats.folder import write_json, write_text
from jspec.studies.common.recipe import Study
from jspec.studies.common.records import Mean, Records


def publish(
    recipe: Study,
    *,
    title: str,
    setting: str,
    findings: Sequence[str],
    sections: Iterable[str],
    computed: Mapping[str, Any],
    records: Records | None = None,
    figures: Sequence[Figure] = (),
) -> list[str]:
    """Writes both below `output/name`, with the definitions of all measures; the findings.

    Args:
      setting: what was done, in prose; the machine is added.
      findings: in sentences; sections: further lines of the report, headings included.
      computed: what the findings were computed from, for programs.
    """
    about = machine()
    found = () if records is None else records.all
    measures = {one.value: one.definition for one in sorted({x.measure for x in found})}
    results = {"study": recipe.record(), "setting": about, "findings": findings, **computed}
    if found:
        results |= {"measures": measures, "records": [one.record() for one in found]}
    write_json(recipe.folder / "results.json", for_json(results))
    here = f"Machine: {about['device']}, {about['cores']} cores, jax {about['jax']}."
    lines = [f"# {title}\n", f"{setting} {here}", "\n## What was found\n"]
    lines += [f"- {line}" for line in findings]
    lines += [f"\n![{figure.title}]({figure.file})" for figure in figures]
    lines += sections
    if measures:
        lines += ["\n## Measures\n", *(f"- `{name}`: {text}." for name, text in measures.items())]
    write_text(recipe.folder / "report.md", "\n".join(lines) + "\n")
    return list(findings)


def for_json(found: Any) -> Any:
    """Dataclasses and named tuples as objects of their fields, arrays as lists."""
    if hasattr(found, "_asdict"):
        found = found._asdict()
    elif hasattr(found, "__dataclass_fields__"):
        found = {name: getattr(found, name) for name in found.__dataclass_fields__}
    if isinstance(found, Mapping):
        return {str(name): for_json(value) for name, value in found.items()}
    if isinstance(found, np.ndarray):
        return found.tolist()
    if isinstance(found, list | tuple):
        return [for_json(value) for value in found]
    return found


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Markdown, line by line."""
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(row)} |"


def listing(columns: Mapping[str, Callable[[Any], str]], entries: Iterable[Any]) -> Iterator[str]:
    """A table with a row for every entry."""
    yield from table(
        list(columns), ([cell(entry) for cell in columns.values()] for entry in entries)
    )


def grid(
    rows: Mapping[str, Any], columns: Mapping[str, Any], cell: Callable[[Any, Any], str]
) -> Iterator[str]:
    """A table of `cell(row, column)`; rows and columns stand under what they are called."""
    lines = (
        [name, *(cell(row, column) for column in columns.values())] for name, row in rows.items()
    )
    yield from table(["", *columns], lines)


def by_temperature(temperatures: Iterable[float]) -> dict[str, float]:
    """Columns for `grid`."""
    return {f"T={one:g}": one for one in temperatures}


def spread(mean: Mean | None, digits: int = 3) -> str:
    """A mean with half of its interval, or nothing."""
    return "" if mean is None else f"{mean.value:.{digits}f}{_half(mean, digits)}"


def signed(mean: Mean | None, digits: int = 4) -> str:
    """A difference with half of its interval, or nothing."""
    return "" if mean is None else f"{mean.value:+.{digits}f}{_half(mean, digits)}"


def _half(mean: Mean, digits: int) -> str:
    return "" if mean.half is None else f" ± {mean.half:.{digits}f}"

"""What a study found, for people in `report.md` and for programs in `results.json`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from jspec.formats.folder import write_json, write_text
from jspec.studies.recipe import Study
from jspec.studies.records import Mean, Records


def publish(
    recipe: Study,
    records: Records,
    about: Mapping[str, Any],
    said: Sequence[str],
    figures: Mapping[str, Any],
    lines: Iterable[str],
) -> None:
    """Writes both below `output/name`.

    Args:
      about: the machine; said: findings in sentences; figures: what they were computed from, for
        programs; lines: of the report.
    """
    write_json(
        recipe.folder / "results.json",
        {
            "study": recipe.record(),
            "setting": dict(about),
            "findings": list(said),
            **figures,
            "records": [asdict(record) for record in records.all],
        },
    )
    write_text(recipe.folder / "report.md", "\n".join(lines) + "\n")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Markdown, line by line."""
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(row)} |"


def spread(mean: Mean, digits: int = 3) -> str:
    """A mean with half of its interval."""
    return f"{mean.value:.{digits}f}" + ("" if mean.half is None else f" ± {mean.half:.{digits}f}")


def signed(mean: Mean, digits: int = 4) -> str:
    """A difference with half of its interval."""
    half = "" if mean.half is None else f" ± {mean.half:.{digits}f}"
    return f"{mean.value:+.{digits}f}{half}"

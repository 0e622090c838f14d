"""What a study found, for people in `report.md` and for programs in `results.json`."""

import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np

from jspec.bench.plots import Figure, draw
from jspec.bench.timing import machine
from jspec.formats.folder import write_json, write_text
from jspec.studies.common.recipe import Study
from jspec.studies.common.records import Places, Records

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Recipe = TypeVar("Recipe", bound=Study)
Found = TypeVar("Found", bound=Records | Sequence[Any])


class Report(Generic[Recipe, Found]):
    """What a person reads of a study: each kind of report says what it is called, what was done,
    and what was found, in sentences, tables and figures.

    Attributes:
      found: what was measured.
    """

    title: ClassVar[str]

    def __init__(self, recipe: Recipe, found: Found) -> None:
        self.recipe, self.found = recipe, found

    def answers(self) -> Iterable[str]:
        """The study's questions, each answered in a line or two by the numbers."""
        raise NotImplementedError

    def _setting(self) -> str:
        """What was done, in prose; the machine is added."""
        raise NotImplementedError

    def _sections(self) -> Iterable[tuple[str, Iterable[str]]]:
        """Headings, each with the lines below it."""
        raise NotImplementedError

    def _computed(self) -> Mapping[str, Any]:
        """What the answers were computed from, for programs."""
        raise NotImplementedError

    def _figures(self) -> Iterable[Figure]:
        return ()

    @classmethod
    def write(cls, recipe: Recipe, found: Found) -> list[str]:
        """Writes report, numbers and figures below `output/name`, with the definitions of all
        measures; the answers."""
        self, about, folder = cls(recipe, found), machine(), recipe.folder
        said = list(self.answers())
        results = {"study": recipe.record(), "setting": about, "findings": said, **self._computed()}
        measures = {}
        if isinstance(found, Records):
            for one in sorted({one.measure for one in found.all}):
                measures[one.value] = one.definition
            results |= {"measures": measures, "records": [one.record() for one in found.all]}
        write_json(folder / "results.json", for_json(results))
        here = f"Machine: {about['device']}, {about['cores']} cores, jax {about['jax']}."
        lines = [f"# {self.title}\n", f"{self._setting()} {here}", "\n## What was found\n"]
        lines += [f"- {line}" for line in said]
        lines += [f"\n![{one.title}]({one.file})" for one in draw(self._figures(), folder)]
        for heading, below in self._sections():
            lines += [f"\n## {heading}\n", *below]
        if measures:
            lines += ["\n## Measures\n", *(f"- `{one}`: {measures[one]}." for one in measures)]
        write_text(folder / "report.md", "\n".join(lines) + "\n")
        return said


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


def listing(head: str, form: str, entries: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """A table with a row for every entry, in a form such as `{draft} | {speedup:.2f}`, whose fields
    are empty where the entry has None."""
    rows = (_Cells().vformat(form, (), entry).split(" | ") for entry in entries)
    yield from table(head.split(" | "), rows)


class _Cells(string.Formatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        return "" if value is None else super().format_field(value, format_spec)


def grid(records: Records, rows: Places, columns: Places, form: str, **where: Any) -> Iterator[str]:
    """A table of what `Records.means` finds, each written in a form such as `.2f`."""
    means = records.means(rows, columns, **where)
    cells = ([name, *(format(one, form) for one in row)] for name, row in means.items())
    yield from table(["", *columns], cells)


def panels(
    file: str, title: str, each: Sequence[Any], paint: Callable[["Axes", Any], None]
) -> Figure:
    """A figure with a panel for each of some things."""

    def paint_all(axes: Sequence["Axes"]) -> None:
        for panel, one in zip(axes, each, strict=True):
            paint(panel, one)

    return Figure(file, title, paint_all, len(each))

"""Figures as a table on a terminal."""

from collections.abc import Sequence

from rich.table import Table

from jspec.bench.summary import Row


def table(rows: Sequence[Row], title: str, *, spread: bool) -> Table:
    """One line a row, a rule between temperatures; `spread` adds the slowest and the fastest.

    Where drafting stops early there is what was kept of the levels drafted, and how many a round
    rows waited for others.
    """
    grid = Table(title=title, title_justify="left", title_style="bold")
    grid.add_column("method")
    columns = ["T", "tokens/s", *(["slowest..fastest"] if spread else []), "speed-up"]
    early = any(row.acceptance_drafted != row.acceptance for row in rows)
    waited = any(row.waited for row in rows)
    columns += ["tokens/round", "acceptance", *(["of drafted"] if early else [])]
    for name in (*columns, *(["waited"] if waited else []), "same text"):
        grid.add_column(name, justify="right")
    for number, row in enumerate(rows):
        following = rows[number + 1 : number + 2]
        grid.add_row(
            row.method,
            f"{row.temperature:g}",
            f"{row.tokens_per_second:.0f}",
            *([f"{row.slowest:.0f}..{row.fastest:.0f}"] if spread else []),
            f"{row.speedup:.2f}x",
            _figure(row.tokens_per_round),
            _figure(row.acceptance),
            *([_figure(row.acceptance_drafted)] if early else []),
            *([_figure(row.waited)] if waited else []),
            {True: "yes", False: "no", None: "-"}[row.identical],
            end_section=bool(following) and following[0].temperature != row.temperature,
        )
    return grid


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"

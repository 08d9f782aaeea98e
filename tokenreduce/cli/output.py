"""Rows as tables for people."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from tokenreduce.lab.rows import COLUMNS, Row

# Where there is no terminal, as in a log, lines may be long. Names of files may look like markup.
console = Console(width=None if sys.stdout.isatty() else 140, markup=False)


def print_table(rows: Sequence[Row], title: str) -> None:
    """Print the rows, with each column of `COLUMNS` that at least one row has."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    keys = [key for key in COLUMNS if any(row.get(key) is not None for row in rows)]
    for key in keys:
        words = key in ("method", "budget", "attention")
        heading, show = COLUMNS[key]
        cells = [show(row[key]) for row in rows if row.get(key) is not None]
        width = max(map(len, cells + heading.split()))  # headings wrap between words, nothing is cut
        table.add_column(heading, justify="left" if words else "right", min_width=width)
    for row in rows:
        table.add_row(*[COLUMNS[key][1](row[key]) if row.get(key) is not None else "-" for key in keys])
    console.print(table)


def print_refused(rows: Sequence[Row]) -> None:
    """A line for each row of an arm that the model cannot reach."""
    for row in rows:
        if "refused" not in row:
            continue
        what = f"{row['method']} at {row['budget']} was not run: {row['refused']}"
        console.print(what, style="yellow", highlight=False)

"""Tables of results/variants.json: what options change on the real model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kernel_tables import NOT_MEASURED

Data = dict[str, Any]
ERRORS = ("class_error", "token_error")


def named(row: Data) -> str:
    """A method with its options, as a call."""
    options = ", ".join(f"{name}={value}" for name, value in row["options"].items())
    return f"`{row['method']}({options})`" if options else f"`{row['method']}`"


def table(rows: Iterable[Data]) -> str:
    """Errors in multiples of `tome`'s: of the means, and image by image."""
    heads = [f"{name.replace('_', ' ')} | image by image" for name in ERRORS]
    lines = [f"| method | {' | '.join(heads)} |", "|---|" + "---:|" * 4]
    for row in rows:
        cells = []
        for key in (f"{name}_of_tome{end}" for name in ERRORS for end in ("", "_geometric")):
            low, high = row[f"{key}_interval"]
            cells.append(f"{row[key]:.2f} ({low:.2f}-{high:.2f})")
        lines.append(f"| {named(row)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tables(read: dict[str, Data]) -> dict[tuple[str, str], str]:
    """(file, marker) -> table, as in `make_table.tables`."""
    data = read.get("variants")
    made = {}
    for place, wanted in ((("docs/ward.md", "variants"), True), (("docs/methods.md", "inherit"), False)):
        rows = [row for row in (data or {}).get("rows", []) if row["method"] != "tome" or row["options"]]
        rows = [row for row in rows if (row["method"] == "ward" or "restore" in row["options"]) is wanted]
        made[place] = table(rows) if rows else NOT_MEASURED.format(name="variants")
    return made

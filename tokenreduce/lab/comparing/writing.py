"""The files of a comparison: a page, tables for programs, and pictures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.comparing.page import need_plotly, page
from tokenreduce.lab.comparing.pictures import draw_all
from tokenreduce.lab.comparing.running import Comparison
from tokenreduce.lab.environment import environment
from tokenreduce.lab.rows import Row
from tokenreduce.lab.whole import remove_unfinished, write_whole


def write_report(comparison: Comparison, out: str | Path, command: str = "") -> list[Path]:
    """Write `report.html`, `rows.csv`, `rows.json` and pictures into the folder `out`; returns these files.

    Args:
        command: what makes this report again, for its readers.

    Raises: ValueError if plotly is not installed, no row was measured, or a file cannot be written.
    """
    need_plotly()
    folder, about = Path(out), environment()
    if not comparison.arms:
        why = "; ".join(f"{row['method']} at {row['budget']}: {row['refused']}" for row in comparison.rows)
        raise InvalidValueError(f"nothing could be measured, so there is no report: {why}")
    data = {"command": "compare", "settings": comparison.settings, "environment": about, "rows": comparison.rows}
    try:
        write_whole(folder / "rows.json", json.dumps(data, indent=2, default=str) + "\n")
        write_whole(folder / "rows.csv", as_csv(comparison.rows))
        pictures = draw_all(comparison, folder)
        write_whole(folder / "report.html", page(comparison, pictures, folder, about, command))
        for name in ("report.html", "rows.csv", "rows.json"):
            remove_unfinished(folder, name)
    except OSError as error:
        raise InvalidValueError(f"{folder} could not be written ({error}); the rows are kept, run again") from None
    return [folder / name for name in ("report.html", "rows.csv", "rows.json", *pictures)]


def as_csv(rows: Sequence[Row]) -> str:
    """The rows with a column for each key that one of them has; nested values as JSON."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(keys)
    writer.writerows([[plain(row.get(key)) for key in keys] for row in rows])
    return text.getvalue()


def plain(value: Any) -> Any:
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, (dict, list, tuple)) else value

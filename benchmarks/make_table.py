"""Rows of a results file as a Markdown table: `python benchmarks/make_table.py results/demo.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tokenreduce.cli.output import COLUMNS

HIDDEN = {"budget", "top5", "token_error", "p90_ms", "attention", "plan_us", "apply_us", "peak_memory_mib"}


def markdown(rows: list[dict]) -> str:
    """The columns of the command's own table."""
    keys = [k for k in COLUMNS if k not in HIDDEN and any(row.get(k) is not None for row in rows)]
    lines = ["| " + " | ".join(COLUMNS[k][0] for k in keys) + " |"]
    lines.append("|" + "|".join("---" if k == "method" else "---:" for k in keys) + "|")
    for row in rows:
        cells = [COLUMNS[k][1](row[k]) if row.get(k) is not None else "-" for k in keys]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text())["rows"]))

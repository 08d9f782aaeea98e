"""Tables of docs/choosing.md, what was measured put together by what a reader has to decide, and of docs/reproduce.md,
what papers state and how it is checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomllib
from quality_tables import SHARES, best

Data = dict[str, Any]
METHODS = ("ward", "tome")
PAPERS = Path(__file__).parent.parent / "docs/papers.toml"
PUBLISHED = ("tome", "evit")


def budgets(real: Data, labelled: Data) -> str:
    """Errors and speed-up of the real model, change of top-1 of the small one, of methods by budget."""
    lines = [
        "| compute | method | class error | token error | speed-up | top-1, change in points |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    for share in SHARES:
        for method in METHODS:
            found, small = (row_of(data, method, share) for data in (real, labelled))
            cells = [f"{share:.0%}", f"`{method}`", f"{found['class_error']:.4f}", f"{found['token_error']:.4f}"]
            cells += [f"{found['speedup']:.2f} x", f"{100 * small['top1_change']:+.2f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def row_of(data: Data, method: str, share: float) -> Data:
    """The row of a method at a share of the compute."""
    return next(row for row in data["rows"] if (row["method"], row["budget"]) == (method, f"flops={share}"))


def published(rows: list[Data], method: str) -> str:
    """Figures of papers for which there are commands."""
    lines = ["| model | budget | unreduced | published | source | command |", "|---|---|---:|---:|---|---|"]
    for row in rows:
        if "weights" in row:
            told = f"--model {row['weights']} --data imagenet --no-exif --data-dir D --method {method} {row['options']}"
            cells = [row["model"], row["budget"], f"{row['full']:.2f}", f"{row['reduced']:.2f}", row["source"]]
            lines.append(f"| {' | '.join(cells)} | `tokenreduce eval {told}` |")
    return "\n".join(lines)


def tables(read: dict[str, Data]) -> dict[tuple[str, str], str]:
    """(file, marker) -> table, as in `make_table.tables`."""
    papers = tomllib.loads(PAPERS.read_text())
    return {
        ("docs/reproduce.md", f"published {name}"): published(papers[name]["published"], name) for name in PUBLISHED
    } | {
        ("docs/choosing.md", "best"): best(read["quality_real"]),
        ("docs/choosing.md", "budgets"): budgets(read["demo_dinov2_small"], read["demo"]),
    }

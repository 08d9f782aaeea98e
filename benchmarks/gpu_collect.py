"""Runs of `benchmarks/gpu.py` on one card -> results/gpu.json, and what `advise` reads of it.

python benchmarks/gpu_collect.py DIR [DIR ...]
python benchmarks/gpu_collect.py benchmarks/results/gpu.json DIR  # a further run of the same card

A later run replaces the rows of an earlier one that measured the same; every row says at which commit it was collected.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from arm_files import here
from origins import earlier

from tokenreduce.lab.speed.gpu_rows import SHIPPED

RESULTS = Path(__file__).parent / "results/gpu.json"
Row = dict[str, Any]
# What was asked, in any stage; everything else in a row was found.
ASKED = ("stage", "model", "side", "batch", "method", "choice", "operator", "shape", "dtype", "ties", "tokens", "heads")
ASKED += ("way", "backend", "tiles", "arm", "mode", "what", "size")
FOUND = {"models": ("dtype", "tokens")}  # of these, what a stage found
ADVISED = ("model", "width", "tokens", "method", "graph_speedup", "eager_speedup")


def read(place: Path) -> dict[str, Any]:
    """A run from its folder, or what was collected before from its file."""
    run = json.loads((place / "rows.json" if place.is_dir() else place).read_text())
    measured = here() if place.is_dir() else earlier("gpu")
    return run | {"rows": [{**row, "measured": row.get("measured", measured)} for row in run["rows"]]}


def joined(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The facts of the last run, and of each row the last.

    Raises: ValueError for runs on different cards.
    """
    cards = {run["gpu"] for run in runs}
    if len(cards) > 1:
        raise ValueError(f"the runs are of {len(cards)} cards ({', '.join(sorted(cards))}); give those of one")
    rows: dict[str, Row] = {}
    for row in (row for run in runs for row in run["rows"]):
        if not row.get("cut"):
            rows[key_of(row)] = row
    return runs[-1] | {"rows": list(rows.values())}


def key_of(row: Row) -> str:
    """What a row was asked, as text."""
    asked = [name for name in ASKED if name in row and name not in FOUND.get(row["stage"], ())]
    return json.dumps([row["stage"], *((name, row[name]) for name in asked)])


def advised(content: dict[str, Any]) -> dict[str, Any]:
    """What `advise` needs: models in graphs, with the kernels that are taken by themselves."""
    rows = [
        {key: row.get(key) for key in ADVISED} | {"batch_size": row["batch"]}
        for row in content["rows"]
        if row["stage"] == "models" and row.get("choice") == "auto" and "graph_speedup" in row
    ]
    return {key: content[key] for key in ("gpu", "torch", "tokenreduce")} | {"rows": rows}


def main() -> None:
    content = joined([read(Path(place)) for place in sys.argv[1:]])
    RESULTS.write_text(json.dumps(content, indent=None).replace('{"stage"', '\n{"stage"') + "\n")
    SHIPPED.write_text(json.dumps(advised(content), indent=1) + "\n")
    print(f"wrote {RESULTS} and {SHIPPED}: {len(content['rows'])} rows of {content['gpu']}")


if __name__ == "__main__":
    main()

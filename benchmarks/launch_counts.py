"""CUDA kernels that a reducing layer of DeiT-S launches without and with Triton, counted on the CPU ->
results/launches.json.

python benchmarks/launch_counts.py

The rules of counting are those of the tests (tests/ops/launches.py, tests/ops/triton/counted.py). No GPU is needed, and
nothing is timed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests/ops"), str(ROOT / "tests/ops/triton")]

from counted import ATTENTION, launches_by_triton  # noqa: E402
from launches import CONSTANT, launches  # noqa: E402

from tokenreduce.lab.environment import environment  # noqa: E402

RESULTS = ROOT / "benchmarks/results/launches.json"
# What the table calls a method, the method, its budget and options.
CASES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("tome", "tome", {"r": 13}),
    ("topk", "topk", {"flops": 0.6}),
    ("evit", "evit", {"flops": 0.6}),
    ("pitome", "pitome", {"flops": 0.6}),
    ("ward(rounds=3)", "ward", {"flops": 0.6, "rounds": 3}),
    ("ward", "ward", {"flops": 0.6}),
)


def counted(title: str, method: str, given: dict[str, Any]) -> dict[str, Any]:
    """Kernels of a reducing layer, on average; by Triton without attention, which takes the place of the model's own,
    and without constants, which are copied once."""
    without, _ = launches(method, **given)
    reducing, kernels, others = launches_by_triton(method, **given)
    del kernels[ATTENTION], others[CONSTANT]
    triton = (kernels.total() + others.total()) / reducing
    return {"method": title, "kernels": round(without, 1), "triton": round(triton, 1)}


def main() -> None:
    rows = [counted(*case) for case in CASES]
    RESULTS.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()

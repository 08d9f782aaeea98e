"""CUDA kernels that a reducing layer of DeiT-S launches without Triton, counted on the CPU -> results/launches.json.

python benchmarks/launch_counts.py

The rules of counting are those of the tests (tests/ops/launches.py). No GPU is needed, and nothing is timed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests/ops"))

from launches import launches  # noqa: E402

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


def main() -> None:
    rows = [{"method": title, "kernels": round(launches(method, **given)[0], 1)} for title, method, given in CASES]
    RESULTS.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()

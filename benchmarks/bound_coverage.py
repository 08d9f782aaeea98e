"""How often the bound of `calibrate(error=)` is above the true mean, of errors whose mean is known
-> results/bound_coverage.json.

python benchmarks/bound_coverage.py     # half a minute on one thread

Errors of sources are log-normal. A percentile bootstrap, which needs no standard errors, stands beside it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor

from tokenreduce.lab.environment import environment
from tokenreduce.lab.quality.bootstrap import draw
from tokenreduce.lab.search.gate import ROUNDS, upper_bound

RESULTS = Path(__file__).parent / "results/bound_coverage.json"
SOURCES, SPREADS = (5, 8, 16, 32, 64), (0.5, 1.0)  # the standard deviation of the logarithm of an error
TRIALS, AT_ONCE = 10_000, 1000


def percentile(errors: Tensor) -> Tensor:
    """The upper end of the draws of the mean itself, of errors `(sources, trials)`."""
    return (draw(len(errors), ROUNDS) @ errors / len(errors)).quantile(0.95, dim=0)


def coverage(sources: int, spread: float) -> dict[str, float]:
    generator, mean = torch.Generator().manual_seed(0), math.exp(spread**2 / 2)
    above = {"bound": 0, "percentile": 0}
    for _ in range(TRIALS // AT_ONCE):
        logs = torch.randn(sources, AT_ONCE, generator=generator, dtype=torch.float64)
        errors = (logs * spread).exp()
        above["bound"] += int((upper_bound(errors, range(sources)) > mean).sum())
        above["percentile"] += int((percentile(errors) > mean).sum())
    return {name: count / TRIALS for name, count in above.items()}


def main() -> None:
    rows = [
        {"spread": spread, "sources": sources, **coverage(sources, spread)} for spread in SPREADS for sources in SOURCES
    ]
    content = {"trials": TRIALS, "environment": environment(), "rows": rows}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()

"""Methods with other options, on the real model and the photographs of quality.py -> results/variants.json.

python benchmarks/variants.py     # about 3 minutes on 2 threads, nothing to download

What an option changes, at 60 % of the multiply-adds. Nothing is chosen by it: these photographs only report.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from quality_real import ERRORS, measure_arm, normalised
from quotients import of_tome, source_weights

from tokenreduce.cli.arguments import progress_bar
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.data.photographs import COUNT, photographs, sources
from tokenreduce.lab.environment import environment
from tokenreduce.lab.quality.features import unlabelled_lanes
from tokenreduce.lab.shipped import dinov2_small

RESULTS = Path(__file__).parent / "results/variants.json"
FLOPS = 0.6
# Pruning as its authors have it: without the sizes of what was dropped.
AUTHORS: dict[str, dict[str, Any]] = {
    "ats": {"inherit": False},
    "topk": {"inherit": False},
    "zero_tprune": {"inherit": False},
    "evit": {"normalise": False, "inherit": False},
    "gtp": {},
}
OURS: dict[str, dict[str, Any]] = {"ats": {}, "topk": {}, "zero_tprune": {}, "evit": {}, "gtp": {"inherit": True}}
WARD: tuple[dict[str, Any], ...] = (
    {}, {"attended": 0.0}, {"early": 0.0}, {"keys_from": 0.0}, {"early": 0.5}, {"early": 1.0}, {"width": 32},
    {"rounds": 3}, {"restore": "delta"},
)  # fmt: skip


def arms() -> list[Arm]:
    """`tome` first: errors are given in multiples of its errors."""
    pruning = [(name, options) for name in AUTHORS for options in (AUTHORS[name], OURS[name])]
    every = [
        ("tome", {}),
        ("tome", {"restore": "kriging"}),
        *(("ward", options) for options in WARD),
        *pruning,
        ("expedit", {"alone": 0.0, "window": 5, "inverse_temperature": 0.02}),  # released for Segmenter ViT-L
        ("expedit", {"alone": 0.0}),
        ("expedit", {}),
        ("random", {}),
    ]
    return [Arm(name, flops=FLOPS, **options) for name, options in every]


def main() -> None:
    model, head = dinov2_small.dinov2_small(), dinov2_small.saliency_head()
    files = list(sources())
    squares, _ = photographs(COUNT, files=files)
    batches, weights = normalised(squares), source_weights(torch.arange(COUNT) % len(files))
    [full], _ = unlabelled_lanes(model, [], head)
    reference = [full.show(batch) for batch in batches]
    rows, tome, every = [], None, arms()
    with progress_bar() as tell:
        for number, arm in enumerate(every):
            tell(number / len(every), str(arm))
            found = measure_arm(model, head, arm, batches, reference)
            tome = tome or found
            row = found["row"] | {"options": arm.options}
            for name in ERRORS:
                row |= {name: float(found[name].mean())} | of_tome(name, found[name], tome[name], weights)
            rows.append(row)
    content = {"model": dinov2_small.NAME, "images": COUNT, "flops": FLOPS, "environment": environment(), "rows": rows}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()

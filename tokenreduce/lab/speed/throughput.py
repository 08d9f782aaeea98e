"""Images a second of several models, timed in interleaved rounds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from tokenreduce.lab.rows import Progress, Row
from tokenreduce.lab.speed.timing import interleave, synchronizer


def throughput(models: Mapping[str, nn.Module], batch: Tensor, rounds: int, progress: Progress) -> list[Row]:
    """A row for each model, with `images_per_second` (by the median time) and `speedup` (the median over rounds of the
    first model's time over this one's)."""
    done = 0

    def tick(name: str) -> None:
        nonlocal done
        done += 1
        progress(done / (len(models) * (rounds + 1)), f"speed of {name}")

    calls = {name: partial(model, batch) for name, model in models.items()}
    with torch.inference_mode():
        times = interleave(calls, rounds, 0.0, synchronizer(batch.device), tick)
    first = times[next(iter(models))]
    return [
        {"images_per_second": len(batch) / own.median, "speedup": statistics.median(first.ratios(own))}
        for own in times.values()
    ]

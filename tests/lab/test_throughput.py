"""Speeds by a clock that the test sets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tokenreduce.lab.speed.throughput import throughput


def test_images_per_second_and_speedup(fake_clock: Callable[..., None]) -> None:
    full, fast, slow = nn.Identity(), nn.Identity(), nn.Identity()
    fake_clock({full: 4.0, fast: 1.0, slow: 16.0})
    told: list[tuple[float, str]] = []
    models = {"unpatched": full, "fast": fast, "slow": slow}
    rows = throughput(models, torch.zeros(8, 3), 3, lambda part, what: told.append((part, what)))
    assert rows == [
        {"images_per_second": 2.0, "speedup": 1.0},
        {"images_per_second": 8.0, "speedup": 4.0},
        {"images_per_second": 0.5, "speedup": 0.25},
    ]
    assert [part for part, _ in told] == pytest.approx([k / 12 for k in range(1, 13)])
    assert told[1][1] == "speed of fast"

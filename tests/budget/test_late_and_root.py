"""The shapes `late`, whose layer follows the budget, and `root`."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tokenreduce import Schedule
from tokenreduce.budget.spreading import Counts


def any_count(n: int) -> int:
    return 1


@pytest.mark.parametrize("goal", [0.9, 0.7, 0.5, 0.4, 0.2])
def test_a_late_cut_comes_earlier_before_it_leaves_less_than_a_third(goal: float) -> None:
    n, depth = 300, 12

    def cost(counts: Counts) -> float:
        return sum(counts) / (n * depth)

    counts = Schedule.budget("late", flops=goal).resolve(n, depth, any_count, cost)
    cut = sum(count == n for count in counts)

    def left(layer: int) -> float:
        """What a cut in this layer leaves: `layer` whole ones, the others at the same count."""
        return n * (goal * depth - layer) / (depth - layer)

    assert cost(counts) == pytest.approx(goal, abs=0.01)
    assert cut == max((layer for layer in range(7) if left(layer) >= n / 3 - 1), default=0)


def test_roots_fall_by_the_same_in_every_block() -> None:
    counts = Schedule.budget("root", ratio=0.75).resolve(10_000, 12, any_count)
    steps = [a**0.5 - b**0.5 for a, b in pairwise((10_000, *counts))]
    assert counts[-1] == 2500 and max(steps) - min(steps) < 0.05
    assert min(Schedule.budget("root", flops=0.35).resolve(100, 12, any_count, lambda c: sum(c) / 1200)) >= 1

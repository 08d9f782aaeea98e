"""The shape "delayed": how late a budget in multiply-adds lets it start."""

from __future__ import annotations

import math

import pytest

from tokenreduce import Schedule

N, DEPTH = 240, 12


def cost(counts: tuple[int, ...]) -> float:
    return sum(counts) / (N * DEPTH)


def nearest(start: int, goal: float) -> tuple[int, ...]:
    """The counts nearest to `goal`, of all that take some amount of N from every layer from `start` on."""
    found = []
    for step in range(20 * N + 1):
        removed = [math.floor(max(0, layer + 1 - start) * step / 20 + 1e-9) for layer in range(DEPTH)]
        found.append(tuple(max(1, N - r) for r in removed))
    return min(found, key=lambda counts: abs(cost(counts) - goal))


@pytest.mark.parametrize(("goal", "start"), [(0.9, 4), (0.75, 4), (0.7, 4), (0.65, 2), (0.6, 1), (0.5, 0), (0.3, 0)])
def test_a_delay_is_as_long_as_a_sixth_of_the_tokens_is_left(goal: float, start: int) -> None:
    counts = Schedule.budget("delayed", flops=goal).resolve(N, DEPTH, lambda n: 1, cost)
    assert counts[:start] == (N,) * start and counts[start] < N
    assert cost(counts) == pytest.approx(cost(nearest(start, goal)), abs=2e-3)
    assert start == 0 or min(counts) * 6 >= N
    assert start == 4 or min(nearest(start + 1, goal)) * 6 < N, "a block later fewer would be left"

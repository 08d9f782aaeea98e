"""`Costs` and `Geometry` against loops over layers and tokens."""

from __future__ import annotations

import dataclasses

import pytest

from tokenreduce.budget.geometry import Costs, Geometry

COSTS = Costs(fixed=1000, per_token=7, attention=(11, 13, 17), pairs=(2, 3, 5), mlp=(19, 23, 29))
ENTERED, LEFT = (12, 9, 9), (9, 9, 4)


def by_hand(protected: int, placement: str) -> int:
    """Adds up what every token and every pair costs in every layer."""
    total = COSTS.fixed
    for _ in range(ENTERED[0]):
        total += COSTS.per_token
    for layer in range(3):
        attending = (LEFT if placement == "pre" else ENTERED)[layer] + protected
        for _ in range(attending):
            total += COSTS.attention[layer]
            for _ in range(attending):
                total += COSTS.pairs[layer]
        for _ in range((ENTERED if placement == "post" else LEFT)[layer] + protected):
            total += COSTS.mlp[layer]
    return total


@pytest.mark.parametrize("placement", ["pre", "mid", "post"])
@pytest.mark.parametrize("protected", [0, 1, 5])
def test_macs_of_the_model_part(placement: str, protected: int) -> None:
    assert COSTS.macs(ENTERED, LEFT, protected, placement) == by_hand(protected, placement)


def test_placements_order() -> None:
    pre, mid, post = (COSTS.macs(ENTERED, LEFT, 1, placement) for placement in ("pre", "mid", "post"))
    assert pre < mid < post
    assert {COSTS.macs(ENTERED, ENTERED, 1, p) for p in ("pre", "mid", "post")} == {3432}


def test_counts_must_be_of_the_same_layers() -> None:
    with pytest.raises(ValueError, match="zip"):
        COSTS.macs(ENTERED, LEFT[:2], 0, "mid")


@pytest.mark.parametrize(
    ("depth", "whole", "in_a_row"),
    [
        (4, set(), True),
        (4, {0, 2}, False),
        (4, {1, 3}, False),
        (4, {0, 1}, True),
        (4, {0, 3}, True),
        (4, {0, 1, 2}, False),
        (1, set(), False),
    ],
)
def test_layers_in_a_row(depth: int, whole: set[int], in_a_row: bool) -> None:
    shape = Geometry(depth, 2, 3, 1, (3, 4, 5), 8, 2, 4, COSTS, frozenset(whole))
    assert shape.in_a_row == in_a_row
    assert shape.count == 60 and shape.protected == 5 and not shape.follows_origin
    assert dataclasses.replace(shape, grid=(7,)).count == 7

"""Snakes over a grid, and over what is left of it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from snakes import slow_orders

from tokenreduce.maps.grid_walks import GridWalk, first_of_grid, left_of_grid, whole_grid

CPU = torch.device("cpu")
# By hand: along rows from the top left and back, along columns from the top left and back; 1 is a move to the right, 2
# to the left, 3 up, 4 down.
BY_HAND = {
    (2, 3): [
        ([0, 1, 2, 5, 4, 3], [0, 1, 1, 4, 2, 2]),
        ([3, 4, 5, 2, 1, 0], [0, 1, 1, 3, 2, 2]),
        ([0, 3, 4, 1, 2, 5], [0, 4, 1, 3, 1, 4]),
        ([5, 2, 1, 4, 3, 0], [0, 3, 2, 4, 2, 3]),
    ],
    (3, 3): [
        ([0, 1, 2, 5, 4, 3, 6, 7, 8], [0, 1, 1, 4, 2, 2, 4, 1, 1]),
        ([8, 7, 6, 3, 4, 5, 2, 1, 0], [0, 2, 2, 3, 1, 1, 3, 2, 2]),
        ([0, 3, 6, 7, 4, 1, 2, 5, 8], [0, 4, 4, 1, 3, 3, 1, 4, 4]),
        ([8, 5, 2, 1, 4, 7, 6, 3, 0], [0, 3, 3, 2, 4, 4, 2, 3, 3]),
    ],
}


def visited(walk: GridWalk, image: int = 0) -> list[int]:
    """The rows of an image in the order in which a direction visits them."""
    rows = walk.order[image].tolist()
    return rows[::-1] if walk.reverse else rows


@pytest.mark.parametrize("grid", BY_HAND)
def test_whole_grids_enumerated_by_hand(grid: tuple[int, int]) -> None:
    walks = whole_grid(grid, 2, CPU)
    assert slow_orders(*grid) == BY_HAND[grid]
    for walk, (order, moves) in zip(walks.directions, BY_HAND[grid], strict=True):
        for image in range(2):
            assert visited(walk, image) == order
            assert walk.moves[image, order].tolist() == moves
            assert walk.shown[image, order].tolist() == [*range(len(order))]


@pytest.mark.parametrize("height", range(1, 6))
@pytest.mark.parametrize("width", range(1, 6))
def test_all_grids_against_the_slow_orders(height: int, width: int) -> None:
    walks = whole_grid((height, width), 1, CPU)
    for walk, (order, moves) in zip(walks.directions, slow_orders(height, width), strict=True):
        assert sorted(order) == [*range(height * width)]
        assert visited(walk) == order and walk.moves[0, order].tolist() == moves


def test_what_is_left_is_a_part_of_each_order() -> None:
    places = torch.tensor([[0, 2, 3, 7], [1, 4, 5, 8]])
    owners = torch.tensor([[0, 0, 1, 2, 2, 1, 2, 3, 3], [0, 0, 2, 1, 1, 2, 1, 3, 3]])
    walks = left_of_grid((3, 3), places, owners, "stand_in", "self")
    for walk, (order, moves) in zip(walks.directions, BY_HAND[3, 3], strict=True):
        for image in range(2):
            stays = places[image].tolist()
            steps = [t for t, place in enumerate(order) if place in stays]
            rows = visited(walk, image)
            assert [stays[row] for row in rows] == [order[t] for t in steps]
            assert walk.shown[image, rows].tolist() == [int(owners[image, t]) for t in steps]
            assert walk.moves[image, rows].tolist() == [moves[t] for t in steps]
            between = [b - a - 1 for a, b in pairwise(steps)]
            assert walk.missing[image, rows].tolist() == [0, *between]
            assert walk.before[image, rows].tolist() == [rows[0], *rows[:-1]]


def test_rows_fill_the_grid_and_come_back() -> None:
    places, owners = torch.tensor([[0, 3]]), torch.tensor([[0, 0, 1, 1]])
    x = torch.tensor([[[1.0], [2.0]]])
    for conv, full in (("stand_in", [1, 1, 2, 2]), ("zeros", [1, 0, 0, 2])):
        walks = left_of_grid((2, 2), places, owners, conv, "hold")
        assert walks.fill(x).flatten().tolist() == full
        assert torch.equal(walks.pick(walks.fill(x)), x)
    whole = whole_grid((2, 2), 1, CPU)
    assert whole.fill(x) is x and whole.pick(x) is x and whole.count == 4


def test_the_last_of_the_first_rows_stands_for_those_that_are_gone() -> None:
    walks = first_of_grid((2, 3), 2, 4, CPU)
    assert walks.places.tolist() == [[0, 1, 2, 3]] * 2 and walks.owners.tolist() == [[0, 1, 2, 3, 3, 3]] * 2
    assert [visited(walk) for walk in walks.directions] == [[0, 1, 2, 3], [3, 2, 1, 0], [0, 3, 1, 2], [2, 1, 3, 0]]

"""A schedule as a value: what it holds, and what it refuses."""

from __future__ import annotations

import dataclasses

import pytest

from tokenreduce import InvalidTypeError, InvalidValueError, Schedule


def test_layers_restored_twice_are_named_once_and_kept_in_order() -> None:
    schedule = Schedule.keep({0: 0.5}).restore_after(4, 1).restore_after(1)
    assert schedule.restored == (1, 4)
    with pytest.raises(ValueError, match="no layer follows layer 4 of 5"):
        schedule.check_layers(5)
    schedule.check_layers(6)


@pytest.mark.parametrize("layer", [True, "3", 1.0])
def test_layers_are_whole_numbers(layer) -> None:
    for make in (
        lambda: Schedule.keep({layer: 0.5}),
        lambda: Schedule.remove(3, layers=[layer]),
        lambda: Schedule.keep({0: 0.5}).restore_after(layer),
    ):
        with pytest.raises(InvalidTypeError, match="layers are ints, 0 is the first"):
            make()


def test_a_schedule_does_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Schedule.remove(3).rule = "keep"  # type: ignore[misc]


def test_a_share_of_multiply_adds_needs_what_they_cost() -> None:
    with pytest.raises(AssertionError):
        Schedule.budget("constant", flops=0.6).resolve(64, 4, lambda n: n // 2)


def test_an_adaptive_schedule_has_no_counts() -> None:
    with pytest.raises(InvalidValueError, match="an adaptive schedule has no counts of its own"):
        Schedule.adaptive().resolve(64, 4, lambda n: n // 2)

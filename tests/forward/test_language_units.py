"""Images and videos in a batch of prompts, by their placeholders."""

from __future__ import annotations

import pytest
import torch

from tokenreduce.forward.language.units import Facts, find_units

A, B, C = Facts((2, 2)), Facts((1, 3)), Facts((3, 1))


def holders(*rows: str) -> torch.Tensor:
    """True where a prompt has an x."""
    return torch.tensor([[sign == "x" for sign in row] for row in rows])


def test_units_follow_each_other_and_may_be_in_pieces() -> None:
    found = find_units(holders("xx.xx.xxx", ".........", "...xxxx.."), [4, 3, 4], [A, B, C])
    assert [(unit.prompt, unit.places.tolist(), unit.facts) for unit in found] == [
        (0, [0, 1, 3, 4], A),
        (0, [6, 7, 8], B),
        (2, [3, 4, 5, 6], C),
    ]


def test_beams_repeat_the_units_of_a_prompt() -> None:
    """[A, B], [], [C] with two beams: A, B, A, B, C, C."""
    rows = holders("xxxx.xxx", "xxxx.xxx", "........", "........", "xxx.....", "xxx.....")
    found = find_units(rows, [4, 3, 4, 3, 3, 3], [A, B, C])
    assert [unit.facts for unit in found] == [A, B, A, B, C, C]
    assert [unit.prompt for unit in found] == [0, 0, 1, 1, 4, 5]


def test_without_grids() -> None:
    assert [unit.facts for unit in find_units(holders("xx.x"), [2, 1], [])] == [Facts(), Facts()]


def test_numbers_that_do_not_fit_are_left_to_the_model() -> None:
    assert find_units(holders("xx.x"), [2], []) == []


def test_an_image_in_two_prompts() -> None:
    with pytest.raises(ValueError, match="an image's tokens must stand in one prompt"):
        find_units(holders("..xx", "x..."), [3], [])

"""`vflowopt` against loops over cells; `tests/language/test_language_received.py` has it in models."""

from __future__ import annotations

import pytest
import torch
from cases import cases
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import tokenreduce
from tokenreduce.reducers.methods.vflowopt import cells_of


def by_cells(score: list[float], grid: tuple[int, int], cell: int, keep: int) -> list[list[int]]:
    """The members of each output, the one that it stands for first: as many kept as make it `keep` outputs."""
    order = sorted(range(len(score)), key=lambda i: (-score[i], i))
    for count in range(len(score), -1, -1):
        groups: dict[tuple[int, int], list[int]] = {}
        for i in order[count:]:  # the most important of each cell comes first
            groups.setdefault((i // grid[1] // cell, i % grid[1] // cell), []).append(i)
        if count + len(groups) <= keep:
            return sorted([[i] for i in order[:count]] + list(groups.values()))
    raise AssertionError(f"{keep} outputs are too few")


@given(cases(least=2), st.integers(1, 4), st.data())
@settings(max_examples=80, deadline=None)
def test_matches_the_specification(case, cell, data) -> None:
    least = -(-case.grid[0] // cell) * -(-case.grid[1] // cell)
    assume(least < case.n)
    keep = data.draw(st.integers(least, case.n - 1))
    received = torch.stack([case.class_attention, case.class_attention], 1)
    token_map = tokenreduce.plan(case.x, "vflowopt", keep=keep, cell=cell, grid=case.grid, received_attention=received)
    score = case.class_attention[0].tolist()
    groups = by_cells(score, case.grid, cell, keep)
    groups.sort(key=lambda members: members[0])
    assert len(groups) == keep and token_map.rep[0].tolist() == [members[0] for members in groups]
    found = token_map.apply(case.x)[0]
    for row, members in zip(found, groups, strict=True):
        weight = torch.tensor([score[i] for i in members])
        expected = (case.x[0, members] * weight[:, None]).sum(0) / weight.sum()
        assert torch.allclose(row, expected, atol=1e-5)
    assert token_map.sizes(None)[0].tolist() == [len(members) for members in groups]


def test_the_cells_of_a_video_are_in_one_frame() -> None:
    assert cells_of((2, 2, 3), 2, torch.device("cpu")).tolist() == [0, 0, 1, 0, 0, 1, 2, 2, 3, 2, 2, 3]


def test_fewer_than_the_cells_cannot_be_left() -> None:
    x, received = torch.randn(1, 16, 4), torch.rand(1, 1, 16)
    with pytest.raises(ValueError, match="vflowopt can leave 4 to 16 of 16 tokens, not 3"):
        tokenreduce.plan(x, "vflowopt", keep=3, cell=2, grid=(4, 4), received_attention=received)


def test_one_stands_for_the_others_where_places_are_not_known() -> None:
    x, received = torch.randn(1, 12, 4), torch.rand(1, 1, 12)
    token_map = tokenreduce.plan(x, "vflowopt", keep=3, cell=2, grid=(4, 4), received_attention=received)
    best = received[0, 0].argsort(descending=True).tolist()
    assert sorted(token_map.rep[0].tolist()) == sorted(best[:3])
    assert sorted(token_map.sizes(None)[0].tolist()) == [1, 1, 10]

"""`todre` against loops over all tokens; `tests/language/test_language_ending.py` has its ending."""

from __future__ import annotations

import pytest
import torch
from by_hand import directions_apart, gaps_of
from cases import cases
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenreduce
from tokenreduce.reducers.methods.todre import least_sum_first
from tokenreduce.reducers.registry import create

NEAR = 1e-5


def cosines(x: torch.Tensor) -> list[list[float]]:
    unit = [row / max(float(row.norm()), 1e-6) for row in x.double()]
    return [[float(a @ b) for b in unit] for a in unit]


def check(x: torch.Tensor, order: list[int], criterion: str) -> None:
    """Each token in the order in which they were chosen is among the best of those that were left."""
    alike, apart = cosines(x), directions_apart(x)
    for done in range(1, len(order)):
        kept, rest = order[:done], [i for i in range(len(x)) if i not in order[:done]]
        if criterion == "maxsum":
            sums = {i: sum(alike[i][j] for j in kept) for i in rest}
            assert sums[order[done]] <= min(sums.values()) + NEAR
        else:
            gaps = gaps_of(apart, kept)
            assert gaps[order[done]] >= max(gaps.values()) - NEAR


@pytest.mark.parametrize("criterion", ["maxsum", "maxmin"])
@given(cases(least=2), st.data(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_each_is_the_best_of_those_left(criterion, case, data, has_class) -> None:
    """Counts grow by one token at a time, so that the order of choosing shows."""
    more = {"class_attention": case.class_attention} if has_class else {}
    order: list[int] = []
    for keep in range(1, case.n):
        token_map = tokenreduce.plan(case.x, "todre", keep=keep, criterion=criterion, **more)
        kept = token_map.rep[0].tolist()
        assert kept == sorted(kept) and len(set(kept)) == keep and token_map.drops
        order += [i for i in kept if i not in order]
        assert len(order) == keep
    check(case.x[0], order, criterion)
    score = case.class_attention[0].tolist()
    if has_class:
        assert order[0] == score.index(max(score))
    else:
        sums = [sum(row) for row in cosines(case.x[0])]
        assert sums[order[0]] <= min(sums) + NEAR * case.n


def test_both_criteria_on_a_case_by_hand() -> None:
    """Both take the opposite of the first; then sums of cosines are 0.1, 0.1 and -0.07, and gaps widest at 1."""
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [-1.0, 0.1], [0.7, -0.7]])[None]
    first = torch.tensor([[1.0, 0, 0, 0, 0]])
    kept = {
        name: tokenreduce.plan(x, "todre", keep=3, criterion=name, class_attention=first).rep[0].tolist()
        for name in ("maxsum", "maxmin")
    }
    assert kept == {"maxsum": [0, 3, 4], "maxmin": [0, 1, 3]}


def test_no_token_is_chosen_twice() -> None:
    unit = torch.ones(2, 7, 3) / 3**0.5
    assert least_sum_first(unit, torch.tensor([2, 5]), 7).sort(1).values.tolist() == [list(range(7))] * 2


def test_the_layer_of_the_ending() -> None:
    assert create("todre", {}).ending(32) == (28, 0.1) and create("todre", {}).ending(3) == (2, 0.1)
    assert create("todre", {"threshold": 0}).ending(32) is None and create("divprune", {}).ending(32) is None

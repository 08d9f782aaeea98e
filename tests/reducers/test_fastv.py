"""`fastv` and `pyramiddrop` on tensors; `tests/language/test_language_within.py` has them in models."""

from __future__ import annotations

import pytest
import torch
from cases import cases
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenreduce
from tokenreduce.reducers.registry import create


@pytest.mark.parametrize("method", ["fastv", "pyramiddrop"])
@given(cases(least=2), st.data())
@settings(max_examples=40, deadline=None)
def test_the_most_attended_tokens_stay_in_their_order(method, case, data) -> None:
    keep = data.draw(st.integers(1, case.n - 1))
    score = case.class_attention[0].tolist()  # of any kind, with ties
    token_map = tokenreduce.plan(case.x, method, keep=keep, text_attention=case.class_attention)
    kept = sorted(sorted(range(case.n), key=lambda i: (-score[i], i))[:keep])
    assert token_map.rep[0].tolist() == kept and torch.equal(token_map.apply(case.x)[0], case.x[0, kept])
    before = [max((j for j in kept if j <= i), default=kept[0]) for i in range(case.n)]
    assert token_map.dest[0].tolist() == [kept.index(j) for j in before]


def test_the_layers_before_which_tokens_leave() -> None:
    assert create("fastv", {}).language_layers(32) == (2,) and create("fastv", {"layer": 3}).language_layers(32) == (3,)
    assert create("pyramiddrop", {}).language_layers(32) == (8, 16, 24)
    assert create("pyramiddrop", {}).language_layers(3) == (1, 2)
    assert create("divprune", {}).language_layers(32) == (0,)
    with pytest.raises(ValueError, match="option layer is 0; it must be 1 or more"):
        create("fastv", {"layer": 0})

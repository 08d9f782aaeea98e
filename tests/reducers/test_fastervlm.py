"""`fastervlm` against a slow reference, on tensors; `tests/language/test_language_tower.py` has it in a model."""

from __future__ import annotations

import torch
from cases import cases
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenreduce


@given(cases(least=2), st.data())
@settings(max_examples=40, deadline=None)
def test_matches_the_specification(case, data) -> None:
    keep = data.draw(st.integers(1, case.n - 1))
    token_map = tokenreduce.plan(case.x, "fastervlm", keep=keep, **case.arguments("class_attention"))
    score = case.class_attention[0].tolist()
    kept = sorted(sorted(range(case.n), key=lambda i: (-score[i], i))[:keep])
    assert token_map.rep[0].tolist() == kept and token_map.drops
    assert torch.equal(token_map.apply(case.x)[0], case.x[0, kept])

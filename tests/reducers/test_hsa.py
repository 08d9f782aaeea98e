"""`hsa` against a slow reference written from its specification."""

from __future__ import annotations

import pytest
import torch
from backbones import BY_NAME, fresh_model
from cases import Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenreduce
from tokenreduce.reducers.registry import create


def clipped(case: Case, i: int) -> float:
    """The sum over channels of max(0, y)."""
    return sum(max(0.0, float(y)) for y in case.scan_output[0, i])


def most_similar(case: Case, i: int, kept: list[int]) -> int:
    cosines = [float(torch.nn.functional.cosine_similarity(case.x[0, i], case.x[0, k], dim=0)) for k in kept]
    return max(range(len(kept)), key=lambda m: (round(cosines[m], 5), -m))


@given(cases(least=2), st.data())
@settings(max_examples=150, deadline=None)
def test_matches_the_specification(case: Case, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, case.n - 1))
    token_map = tokenreduce.plan(case.x, "hsa", keep=keep, **case.arguments("scan_output"))
    kept = sorted(sorted(range(case.n), key=lambda i: (-clipped(case, i), i))[:keep])
    assert token_map.rep[0].tolist() == kept and token_map.drops
    expected = [kept.index(i) if i in kept else most_similar(case, i, kept) for i in range(case.n)]
    assert token_map.dest[0].tolist() == expected
    y, sizes = tokenreduce.apply(token_map, case.x, case.sizes)
    assert torch.equal(y, case.x[:, kept]) and sizes[0].tolist() == case.inherited(kept, expected, False)
    assert torch.equal(tokenreduce.restore(token_map, y), y[:, expected])


def test_negative_outputs_count_nothing() -> None:
    """A token of large negative outputs ranks as one of zeros; their sum or their size would set it apart."""
    y = torch.tensor([[[-9.0, -9.0], [0.0, 0.0], [0.1, -9.0], [0.2, 0.0]]])
    kept = [tokenreduce.plan(torch.randn(1, 4, 2), "hsa", keep=k, scan_output=y).rep[0].tolist() for k in (1, 2, 3)]
    assert kept == [[3], [2, 3], [0, 2, 3]]


def test_is_topk_by_scan_output() -> None:
    """On models: what both keep is the same, and so is what stands for the rest."""
    row = BY_NAME["scan_vim"]
    found = []
    for method, options in (("hsa", {}), ("topk", {"score": "scan_output", "inherit": False})):
        model = tokenreduce.patch(fresh_model(row), method, r=[20, 10], **options)
        with torch.no_grad():
            found.append(model(row.images()))
    assert torch.equal(*found)


def test_what_it_needs() -> None:
    assert create("hsa", {}).required() == {"scan_output"}
    with pytest.raises(ValueError, match="hsa needs scan_output; pass it to plan"):
        tokenreduce.plan(torch.randn(1, 4, 2), "hsa", keep=2)
    with pytest.raises(ValueError, match=r"scan_output has shape \(1, 3, 2\)"):
        tokenreduce.plan(torch.randn(1, 4, 2), "hsa", keep=2, scan_output=torch.randn(1, 3, 2))

"""`fopru` against sums in loops; `tests/language/test_language_tower.py` has it in models."""

from __future__ import annotations

import pytest
import torch
from cases import cases
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenreduce


def best(score: list[float], count: int) -> list[int]:
    """The places of the highest, of equals the lower first."""
    return sorted(range(len(score)), key=lambda i: (-score[i], i))[:count]


@given(cases(least=2), st.data())
@settings(max_examples=40, deadline=None)
def test_single_tokens(case, data) -> None:
    keep = data.draw(st.integers(1, case.n - 1))
    received = torch.stack([case.class_attention, case.class_attention.flip(1)], 1)
    token_map = tokenreduce.plan(case.x, "fopru", keep=keep, received_attention=received)
    score = [(float(a) + float(b)) / 2 for a, b in zip(*received[0], strict=True)]
    kept = sorted(best(score, keep))
    assert token_map.rep[0].tolist() == kept and torch.equal(token_map.apply(case.x)[0], case.x[0, kept])


@given(cases(least=2), st.data())
@settings(max_examples=60, deadline=None)
def test_whole_rows(case, data) -> None:
    keep, (height, width) = data.draw(st.integers(1, case.n - 1)), case.grid
    score = (case.class_attention * 8).round() / 8  # so that sums are exact
    token_map = tokenreduce.plan(
        case.x, "fopru", keep=keep, strategy="row", grid=case.grid, received_attention=score[:, None]
    )
    rows = [score[0, y * width : (y + 1) * width].tolist() for y in range(height)]
    kept: list[int] = []
    for y in best([sum(row) for row in rows], height):
        kept += [y * width + x for x in best(rows[y], keep - len(kept))]
    assert token_map.rep[0].tolist() == sorted(kept) and len(kept) == keep


def test_what_is_received_of_whole_attention() -> None:
    attention = torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(0)).softmax(-1)
    x = torch.randn(2, 9, 4)
    whole = tokenreduce.plan(x, "fopru", keep=4, attention=attention, prefix=1)
    alone = tokenreduce.plan(x, "fopru", keep=4, received_attention=attention.sum(2)[..., 1:])
    assert torch.equal(whole.rep, alone.rep)


def test_rows_need_a_grid() -> None:
    with pytest.raises(ValueError, match="fopru needs grid"):
        tokenreduce.plan(torch.randn(1, 6, 2), "fopru", keep=3, strategy="row", received_attention=torch.ones(1, 1, 6))


def test_single_tokens_where_some_have_left() -> None:
    x, received = torch.randn(1, 5, 2), torch.tensor([[[1.0, 5, 2, 4, 3]]])
    more = {"keep": 2, "strategy": "row", "grid": (2, 3), "received_attention": received}
    assert tokenreduce.plan(x, "fopru", **more).rep.tolist() == [[1, 3]]

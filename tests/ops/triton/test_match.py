"""`bipartite_match` in the interpreter is the reference, with ties, NaN and infinity too."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import DTYPES, STRIDES, best_matches, by_reference, exact_rows, same, strided
from torch import Tensor

pytest.importorskip("triton")
from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.native import dispatch
from tokenreduce.ops.triton.match import NARROW, SMALL, bipartite_match
from tokenreduce.reducers.parts.bipartite import match_bipartite


def matched(metric: Tensor, keep: int, first: int) -> TokenMap:
    with dispatch.using("triton"):
        return match_bipartite(metric, keep, first)


def exact(n: int, width: int = 5, batch: int = 2, seed: int = 0) -> Tensor:
    """Rows on the axes: every score is -1, 0 or 1, so that most are ties; some rows are zero or NaN."""
    g = torch.Generator().manual_seed(seed)
    length = torch.randint(-3, 4, (batch, n, 1), generator=g).float()
    length = torch.where(torch.rand(length.shape, generator=g) < 0.02, torch.nan, length)
    return torch.zeros(batch, n, width).scatter(2, torch.randint(width, (batch, n, 1), generator=g), length)


@pytest.mark.interpreted
@settings(deadline=None, max_examples=60)
@given(exact_rows(70), st.integers(0, 1), st.floats(0, 1), st.sampled_from(DTYPES), STRIDES)
def test_ties_and_odd_values(x: Tensor, first: int, share: float, dtype: torch.dtype, strides: str) -> None:
    n = x.shape[1]
    keep = n - round(share * (n // 2))
    x = strided(x.to(dtype), strides)
    same(matched(x, keep, first), by_reference(match_bipartite, x.float(), keep, first))


@pytest.mark.interpreted
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("n", [2, 3, 31, 32, 33, 129, SMALL - 1, SMALL, SMALL + 1, 300])
def test_numbers_of_tokens(n: int, first: int) -> None:
    """Nothing merges, one token does, and as many as can; on both sides of what one program matches."""
    x = exact(n)
    for keep in {n, n - 1, n - n // 2}:
        same(matched(x, keep, first), by_reference(match_bipartite, x, keep, first))


@pytest.mark.interpreted
@pytest.mark.parametrize("first", [0, 1])
def test_one_token_stays(first: int) -> None:
    """Of which the reference makes no map: it has no pair."""
    dest, rep, sources = bipartite_match(torch.ones(2, 1, 4), 1, first)
    assert torch.equal(dest, torch.zeros(2, 1)) and torch.equal(rep, dest) and sources.shape == (2, 0)


@pytest.mark.interpreted
@pytest.mark.parametrize("width", [1, 7, 48, 100, NARROW, NARROW + 1, 200])
@pytest.mark.parametrize("dtype", DTYPES)
def test_widths(width: int, dtype: torch.dtype) -> None:
    """A wide row goes through tiles, whatever the number of tokens."""
    x = torch.randn(2, 41, width, generator=torch.Generator().manual_seed(width)).to(dtype)
    best_matches(matched(x, 27, 1), x, 27, 1)
    x = exact(41, width).to(dtype)
    same(matched(x, 27, 0), by_reference(match_bipartite, x.float(), 27, 0))


@pytest.mark.interpreted
@pytest.mark.parametrize("n", [70, SMALL + 30])
@pytest.mark.parametrize("heads", [1, 2, 3, 6])
def test_keys_of_heads_are_averaged(heads: int, n: int) -> None:
    """As views of a fused projection; sums of small integers are exact in any order."""
    g = torch.Generator().manual_seed(heads)
    length = torch.randint(-2, 3, (2, heads, n, 1), generator=g).half()
    place = torch.randint(16, (2, 1, n, 1), generator=g).expand(-1, heads, -1, -1)
    qkv = torch.randn(2, n, 3, heads, 16, generator=g).half()
    keys = qkv.permute(2, 0, 3, 1, 4)[1]
    keys.copy_(torch.zeros_like(keys).scatter(3, place, length))
    assert not keys.is_contiguous()
    found = matched(keys, n - n // 3, 1)
    same(found, by_reference(match_bipartite, keys, n - n // 3, 1))
    channels_first = keys.transpose(2, 3).contiguous().transpose(2, 3)
    same(matched(channels_first, n - n // 3, 1), found)


@pytest.mark.interpreted
@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("n", [50, SMALL + 10])
def test_nan_is_the_greatest_score(n: int, odd: float) -> None:
    """As it is in PyTorch: a source with NaN merges first, into the first target; a target with NaN takes all."""
    for place in (4, 7):  # a source, a target
        x = torch.randn(2, n, 8, generator=torch.Generator().manual_seed(0))
        x[1, place, 3] = odd
        for first in (0, 1):
            same(matched(x, n - 9, first), by_reference(match_bipartite, x, n - 9, first))

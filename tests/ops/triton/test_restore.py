"""`restore_apply` and `size_bias` in the interpreter are the reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import DTYPES, STRIDES, by_reference, strided
from torch import Tensor

pytest.importorskip("triton")
from tokenreduce.maps.restoring import Around, restore_tokens
from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.merging import size_bias
from tokenreduce.ops.native import dispatch
from tokenreduce.ops.triton.restore import WIDEST, restore_apply

TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def parts(
    n: int, keep: int, width: int, prefix: int, suffix: int, batch: int = 2, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, TokenMap]:
    """Tokens now, after and before merging, and a map."""
    g = torch.Generator().manual_seed(seed)
    now, after = torch.randn(2, batch, prefix + keep + suffix, width, generator=g)
    before = torch.randn(batch, prefix + n + suffix, width, generator=g)
    return now, after, before, TokenMap(keep, dest=torch.randint(keep, (batch, n), generator=g))


def check(now: Tensor, after: Tensor, before: Tensor, token_map: TokenMap, prefix: int, suffix: int) -> None:
    assert token_map.dest is not None
    copied = restore_apply(now, token_map.dest, None, None, prefix, suffix)
    assert copied.is_contiguous()
    torch.testing.assert_close(copied, token_map.restore(now, prefix, suffix), rtol=0, atol=0, equal_nan=True)
    with dispatch.using("triton"):
        found = restore_tokens("delta", now, [token_map], [Around(before, after)], prefix, suffix)
    wide = [t.double() for t in (now, before, after)]
    expected = by_reference(restore_tokens, "delta", wide[0], [token_map], [Around(*wide[1:])], prefix, suffix)
    tolerance = TOLERANCE[now.dtype]
    assert found.dtype == now.dtype
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance, equal_nan=True)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, TokenMap, int, int]:
    n, width = draw(st.integers(1, 120)), draw(st.sampled_from((1, 7, 64, 100, 300)))
    prefix, suffix = draw(st.sampled_from((0, 1, 5))), draw(st.sampled_from((0, 3)))
    made = parts(n, draw(st.integers(1, n)), width, prefix, suffix, draw(st.integers(0, 3)), draw(st.integers(0, 999)))
    dtype = draw(st.sampled_from(DTYPES))
    now, after, before = (strided(t.to(dtype), draw(STRIDES)) for t in made[:3])
    return now, after, before, made[3], prefix, suffix


@pytest.mark.interpreted
@settings(deadline=None, max_examples=60)
@given(cases())
def test_maps_types_strides_and_protected_tokens(case: tuple[Tensor, Tensor, Tensor, TokenMap, int, int]) -> None:
    check(*case)


@pytest.mark.interpreted
@pytest.mark.parametrize("width", [96, WIDEST, WIDEST + 8])
@pytest.mark.parametrize("n", [1, 255, 256, 257, 300])
def test_numbers_of_tokens_and_widths(n: int, width: int) -> None:
    check(*parts(n, (n + 1) // 2, width, 1, 0), 1, 0)


@pytest.mark.interpreted
@pytest.mark.parametrize("odd", [torch.nan, torch.inf])
def test_nan_and_infinity_reach_those_that_they_stand_for(odd: float) -> None:
    now, after, before, token_map = parts(40, 9, 8, 1, 2)
    now[1, 4, 3] = odd
    check(now, after, before, token_map, 1, 2)
    before[0, 7, 1], after[1, 0, 2] = odd, odd
    check(now, after, before, token_map, 1, 2)


@pytest.mark.interpreted
@pytest.mark.parametrize(("prefix", "suffix"), [(0, 0), (1, 0), (5, 3)])
@pytest.mark.parametrize("n", [1, 100, 255, 256, 257, 300])
def test_logarithms_of_sizes(n: int, prefix: int, suffix: int) -> None:
    sizes = torch.randint(0, 9, (2, 2 * n), generator=torch.Generator().manual_seed(n)).float()  # 0 is padding
    for view in (sizes[:, :n], sizes[:, ::2], sizes[:1, :n].expand(2, -1)):
        with dispatch.using("triton"):
            found = size_bias(view, prefix, suffix)
        torch.testing.assert_close(found, by_reference(size_bias, view, prefix, suffix))

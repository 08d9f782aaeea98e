"""The mark `interpreted`."""

from __future__ import annotations

import os

import pytest


@pytest.mark.interpreted
@pytest.mark.parametrize("n", [1, 2])
def test_marked_tests_run_where_kernels_are_interpreted(n: int) -> None:
    from tokenreduce.ops.triton.launching import interpreted, why_not

    assert interpreted() and why_not() == "" and n in (1, 2)


def test_others_do_not() -> None:
    assert "TRITON_INTERPRET" not in os.environ


@pytest.mark.interpreted
@pytest.mark.xfail(raises=AssertionError, strict=True)
def test_failures_are_seen() -> None:
    raise AssertionError("in the other process")


@pytest.mark.interpreted
def test_bfloat16_is_rounded_and_multiplied() -> None:
    import torch
    import triton
    from triton import language as tl

    @triton.jit
    def product(x, y, out):
        place = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
        found = tl.dot(tl.load(x + place), tl.load(y + place))
        tl.store(out + place, found.to(tl.bfloat16))

    x, y = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    out = torch.empty_like(x)
    product[(1,)](x, y, out)
    assert torch.equal(out, (x.float() @ y.float()).bfloat16())

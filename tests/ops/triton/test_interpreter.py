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

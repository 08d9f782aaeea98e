"""The compiled attention of class tokens against the reference, which is the softmax of a product."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import DTYPES, by_reference, kernel
from torch import Tensor

from tokenreduce.ops.attention import class_rows
from tokenreduce.ops.native import dispatch

pytestmark = pytest.mark.skipif(bool(dispatch.load()), reason=f"kernels cannot be compiled here: {dispatch.load()}")


def heads_of(batch: int, n: int, heads: int, width: int, how: str, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Queries and keys: views of one projection, or tensors of their own."""
    qkv = torch.randn(batch, n, 3, heads, width, generator=g).permute(2, 0, 3, 1, 4)
    if how == "views":
        return qkv[0], qkv[1]
    return (qkv[0].contiguous(), qkv[1].transpose(-1, -2).contiguous().transpose(-1, -2))  # channels lie apart


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 3), st.integers(1, 70), st.integers(1, 3), st.sampled_from((1, 7, 16, 64, 80)), st.integers(1, 3),
    st.sampled_from(("views", "own")), st.sampled_from((None, "each", "all", "strided", "masked")),
    st.sampled_from(DTYPES), st.integers(0, 10**6),
)  # fmt: skip
def test_is_the_reference(batch, n, heads, width, class_tokens, how, biased, dtype, seed) -> None:
    g = torch.Generator().manual_seed(seed)
    queries, keys = (t.to(dtype) for t in heads_of(batch, n, heads, width, how, g))
    class_tokens = min(class_tokens, n)
    logs = torch.randint(1, 9, (batch, 2 * n), generator=g).float().log()[:, None, None]
    bias = {
        None: None, "each": logs[..., :n].contiguous(), "all": logs[:1, ..., :n] if batch else None,
        "strided": logs[..., ::2], "masked": logs[..., :n].masked_fill(torch.arange(n) % 3 == 1, -torch.inf),
    }[biased]  # fmt: skip
    with dispatch.using("cpu"):
        found = class_rows(queries, keys, bias, class_tokens)
    expected = by_reference(class_rows, queries, keys, bias, class_tokens)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_spreads_over_its_image_alone(odd: float) -> None:
    queries, keys = heads_of(2, 21, 2, 16, "views", torch.Generator().manual_seed(0))
    keys = keys.clone()
    keys[0, 1, 4] = odd
    with dispatch.using("cpu"):
        found = class_rows(queries, keys, None, 1)
    expected = by_reference(class_rows, queries, keys, None, 1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert found[0].isnan().any() and not found[1].isnan().any()


def test_equal_keys_get_equal_attention_to_the_bit() -> None:
    queries, keys = heads_of(1, 37, 3, 40, "views", torch.Generator().manual_seed(1))
    with dispatch.using("cpu"):
        found = class_rows(queries, keys[:, :, :1].expand(-1, -1, 37, -1), None, 2)
    assert found.unique().numel() == 1


Q = torch.randn(2, 3, 5, 4)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((Q, Q[..., :3], None, 1), "queries has shape"),
        ((Q, Q.double(), None, 1), "keys must have the type of queries"),
        ((Q, Q, torch.zeros(2, 1, 1, 4), 1), "bias has shape"),
        ((Q, Q, torch.zeros(2, 1, 1, 5).double(), 1), "bias must be float32"),
        ((Q, Q, None, 0), r"class_tokens is 0; it must lie in \[1, 5\]"),
        ((Q, Q, None, 6), "class_tokens is 6"),
    ],
)
def test_wrong_arguments_are_named(arguments, named) -> None:
    with pytest.raises(RuntimeError, match=named):
        kernel("class_rows")(*arguments)

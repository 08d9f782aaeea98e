"""Calling compiled kernels and their references, on tensors of any type and stride."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.native import dispatch

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
FIELDS = ("dest", "rep", "sources")


def kernel(name: str) -> Callable[..., Any]:
    return getattr(torch.ops.tokenreduce_kernels, name)


def by_reference(function: Callable[..., Any], *args: Any) -> Any:
    with dispatch.using("reference"):
        return function(*args)


def strided(x: Tensor, how: str) -> Tensor:
    """`x` with other strides than a contiguous tensor has."""
    if how == "channels first":  # what the convolution of a patch embedding gives
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if how == "transposed":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    return torch.cat([x, x], -1)[..., : x.shape[-1]] if how == "padded" else x


STRIDES = st.sampled_from(("contiguous", "transposed", "padded", "channels first"))


def same(a: TokenMap, b: TokenMap) -> None:
    for field in FIELDS:
        torch.testing.assert_close(getattr(a, field), getattr(b, field), rtol=0, atol=0, msg=field)


@st.composite
def exact_rows(draw: Any, most: int = 150) -> Tensor:
    """`(B, N, d)` whose directions and products any order of summation finds exactly: ties everywhere. Some rows are
    zero, NaN or infinite."""
    batch, n, width = draw(st.integers(0, 3)), draw(st.integers(2, most)), draw(st.sampled_from((1, 4, 5, 16, 33)))
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    place = torch.randint(width, (batch, n, 1), generator=g)
    length = 2.0 ** torch.randint(-2, 3, (batch, n, 1), generator=g) * torch.randint(-1, 2, (batch, n, 1), generator=g)
    odd = draw(st.sampled_from((None, None, float("nan"), float("inf"))))
    if odd is not None:
        length = torch.where(torch.rand(length.shape, generator=g) < 0.1, odd, length)
    return torch.zeros(batch, n, width).scatter(2, place, length)


def best_matches(found: TokenMap, x: Tensor, keep: int, first: int) -> None:
    """Whatever rounding does to near ties: no other choice is better by more than rounding."""
    unit = torch.nn.functional.normalize(x.double(), dim=-1)
    scores = unit[:, first::2] @ unit[:, 1 - first :: 2].transpose(1, 2)
    best = scores.amax(2)
    moved = found.sources // 2
    targets = found.rep.gather(1, found.dest.gather(1, found.sources)) // 2
    taken = scores.flatten(1).gather(1, moved * scores.shape[2] + targets)
    assert torch.allclose(taken, best.gather(1, moved), rtol=0, atol=1e-5)
    assert torch.allclose(taken, best.sort(1, descending=True).values[:, : x.shape[1] - keep], rtol=0, atol=1e-5)
    assert torch.equal(found.dest.gather(1, found.rep), torch.arange(keep).expand(len(x), -1))

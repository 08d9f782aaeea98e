"""Calling compiled kernels and their references, on tensors of any type and stride."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tokenreduce.ops.native import dispatch

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


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

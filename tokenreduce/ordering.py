"""Sorting in which equal values keep their order."""

from __future__ import annotations

import torch
from torch import Tensor


def stable_order(x: Tensor, dim: int, descending: bool = False) -> Tensor:
    """The indices that sort `x` along `dim`, the lowest first among equals."""
    # The stable overload has no translation to ONNX, whose TopK promises the lowest index of equals.
    if torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export():
        return x.sort(dim=dim, descending=descending).indices
    return x.argsort(dim=dim, descending=descending, stable=True)

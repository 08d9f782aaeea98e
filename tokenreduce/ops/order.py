"""Sorting in which equal values keep their order."""

from __future__ import annotations

from torch import Tensor

from tokenreduce.ops.tracing import to_onnx


def stable_order(x: Tensor, dim: int, descending: bool = False) -> Tensor:
    """The indices that sort `x` along `dim`, the lowest first among equals."""
    # The stable overload has no translation to ONNX, whose TopK promises the lowest index of equals.
    if to_onnx():
        return x.sort(dim=dim, descending=descending).indices
    return x.argsort(dim=dim, descending=descending, stable=True)

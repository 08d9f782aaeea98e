"""Sorting in which equal values keep their order."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.ops.tracing import to_onnx


def stable_order(x: Tensor, dim: int, descending: bool = False) -> Tensor:
    """The indices that sort `x` along `dim`, the lowest first among equals."""
    if to_onnx():
        return twice_sorted(x.movedim(dim, -1), descending).movedim(-1, dim)
    return x.argsort(dim=dim, descending=descending, stable=True)


def twice_sorted(x: Tensor, descending: bool) -> Tensor:
    """`stable_order` of the last dimension for ONNX, which has no stable sort.

    Its TopK promises the lowest index of equals, but OpenVINO does not keep that. So equals are numbered and sorted
    again, with their index.
    """
    values, order = x.sort(dim=-1, descending=descending)
    differs = torch.ne(values[..., 1:], values[..., :-1]).long()
    level = torch.cat([torch.zeros_like(order[..., :1]), differs.cumsum(-1)], -1)
    places = (level * x.shape[-1] + order).sort(dim=-1).indices
    return order.gather(-1, places)

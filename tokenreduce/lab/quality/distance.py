"""How far one vector points from another."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - cosine along the last dimension, in fp32, without the cancellation that would hide small distances."""
    difference = F.normalize(a.float(), dim=-1) - F.normalize(b.float(), dim=-1)
    return difference.square().sum(-1) / 2

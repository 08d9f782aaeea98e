"""What merging two tokens costs: Ward's criterion, and which token a senior one takes for how much."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenreduce.ops.constants import counting

ROUNDING = 1e-6  # squared distances below this part of the squares are what rounding leaves of zero


def merge_price(a: Tensor, b: Tensor, sizes_a: Tensor | None, sizes_b: Tensor | None) -> Tensor:
    """`(B, K, L)`: `s t / (s + t) |a - b|^2` of points `a (B, K, d)`, `b (B, L, d)` and their sizes (None: 1), above
    0."""
    scale = a.square().sum(-1)[:, :, None] + b.square().sum(-1)[:, None, :]
    squared = torch.maximum(scale - 2 * torch.bmm(a, b.transpose(1, 2)), ROUNDING * scale).clamp_min(1e-12)
    if sizes_a is None or sizes_b is None:
        return squared / 2
    # Padding has no size, and merges for nothing.
    one, other = sizes_a.clamp_min(1e-6)[:, :, None], sizes_b.clamp_min(1e-6)[:, None, :]
    return squared / (1 / one + 1 / other)


def cheapest_senior(price: Tensor, sizes: Tensor | None) -> Tensor:
    """`(B, N)`: the least `price (B, N, N)` at which a senior token can take each one; inf for the most senior.

    Larger tokens are senior to smaller ones and, of equals, earlier ones to later ones.
    """
    place = counting(price.shape[1], price.device)
    senior = (place[:, None] < place).expand_as(price)
    if sizes is not None:
        one, other = sizes[:, :, None], sizes[:, None, :]
        senior = (one > other) | ((one == other) & senior)
    return price.masked_fill(~senior, math.inf).amin(1)

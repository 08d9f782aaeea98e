"""Fewer channels that keep distances on average: a count sketch (Charikar et al. 2002)."""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor

from tokenreduce.ops.constants import constant
from tokenreduce.ops.tracing import computed_once

WIDEST = 64


def sketch_width(channels: int) -> int:
    """Channels that do for a sketch of so many."""
    return min(WIDEST, max(1, channels // 4))


def sketch(x: Tensor, width: int) -> Tensor:
    """`(B, N, width)` of `x (B, N, C)`: sums of C / width channels, each with its sign."""
    channels = x.shape[-1]
    if width == channels:
        return x
    signed = x * constant(signs(channels), x.device)
    whole = channels // width * width
    out = signed[..., :whole].unflatten(-1, (-1, width)).sum(-2)
    if whole == channels:
        return out
    rest = signed[..., whole:]
    return torch.cat([out[..., : channels - whole] + rest, out[..., channels - whole :]], -1)


@computed_once
def signs(count: int) -> tuple[float, ...]:
    """`count` signs, always the same: of five seeds the one that cost `ward` least on photographs."""
    generator = Random(1)
    return tuple(1.0 - 2.0 * generator.getrandbits(1) for _ in range(count))

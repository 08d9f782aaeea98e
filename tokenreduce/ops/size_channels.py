"""Sizes of tokens in two more channels of queries and keys, in the place of an additive mask.

A float mask switches flash attention off on a GPU. With `p` near `1 / scale` and `b = log s / (scale p)`, queries
`[q, p, p]` and keys `[k, high(b), low(b)]` have the products `q k + log s / scale`: the same attention without a mask.
Two channels, because half precision holds `b` only as a sum of two numbers. On the CPU flash attention takes a mask.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from tokenreduce.ops.modes import knows_autocast

WIDEST = 256  # channels that flash attention takes
# In the place of the logarithm of 0, which would make NaN: fp16 holds it, and e to its power is 0 in fp32. To look for
# sizes of 0 instead would make the host wait for the GPU.
LEAST = -60000.0


def why_unfit(query: Tensor, scale: float) -> str:
    """Why queries `(B, H, N, d)` with logits at this scale take no more channels; empty if they do."""
    if query.shape[-1] + added(query) > WIDEST:
        return f"{query.shape[-1]} channels a head and {added(query)} more are over the {WIDEST} of flash attention"
    return "" if 2**-14 <= scale <= 2**14 else f"the scale {scale} is out of the range of fp16"


def with_channels(
    query: Tensor, key: Tensor, value: Tensor, logs: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values `(B, H, N, d)` with more channels, which add `logs (B, 1, 1, N)` to the logits at this
    scale; those of values are 0."""
    dtype, more = attended_type(query), added(query)
    power = 2.0 ** round(-math.log2(scale))  # products with it are exact
    exact = (logs[:, :1, 0].to(torch.promote_types(dtype, torch.float32)) / (scale * power)).clamp_min(LEAST)
    high = exact.to(dtype)
    channels = pad(torch.stack([high, (exact - high).to(dtype)], -1), (0, more - 2))
    keys = torch.cat([key.to(dtype), channels.expand(*key.shape[:-1], more)], -1)
    return pad(query.to(dtype), (0, more), value=power), keys, pad(value.to(dtype), (0, more))


def added(query: Tensor) -> int:
    """How many channels are added: two, and zeros up to a multiple of 8 as flash attention needs it."""
    return 2 + -(query.shape[-1] + 2) % 8


def attended_type(x: Tensor) -> torch.dtype:
    """The type in which attention works on `x`, which autocast decides where it is on."""
    device = x.device.type
    cast = x.dtype != torch.float64 and knows_autocast(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if cast else x.dtype

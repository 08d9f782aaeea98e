"""Sizes of tokens in two more channels of queries and keys, in the place of an additive mask.

A float mask switches flash attention off on a GPU. With `p` near `1 / scale` and `b = log s / (scale p)`, queries
`[q, p, p]` and keys `[k, high(b), low(b)]` have the products `q k + log s / scale`: the same attention without a mask.
Two channels, because half precision holds `b` only as a sum of two numbers. On the CPU flash attention takes a mask.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn import Parameter
from torch.nn.functional import pad, scaled_dot_product_attention

from tokenreduce.errors import InvalidValueError, unknown
from tokenreduce.ops.modes import dispatch_modes, function_transform, is_tracing, knows_autocast

CHOICES = {
    "auto": "channels on CUDA in half precision, the mask elsewhere",
    "mask": "the mask everywhere",
    "channels": "channels everywhere, an error where they cannot be",
}
HALF = (torch.float16, torch.bfloat16)
WIDEST = 256  # channels that flash attention takes
KEEP_SIZES = (Tensor.to, Tensor.expand, Tensor.__getitem__)  # what libraries do to a mask before attention
# In the place of the logarithm of 0, which would make NaN: fp16 holds it, and e to its power is 0 in fp32. To look for
# sizes of 0 instead would make the host wait for the GPU.
LEAST = -60000.0

_chosen = os.environ.get("TOKENREDUCE_ATTENTION", "auto")
if _chosen not in CHOICES:
    raise unknown("TOKENREDUCE_ATTENTION", _chosen, CHOICES)


@contextmanager
def using(choice: str) -> Iterator[None]:
    """Give sizes to attention by this choice, one of `CHOICES`, in all threads; the environment variable
    TOKENREDUCE_ATTENTION does so for a whole process."""
    global _chosen
    if choice not in CHOICES:
        raise unknown("choice of attention", choice, CHOICES)
    before, _chosen = _chosen, choice
    try:
        yield
    finally:
        _chosen = before


def size_mask(bias: Tensor, x: Tensor) -> Tensor:
    """Additive logits `bias (B, 1, 1, N)` as attention over `x (B, N, C)` takes them: in its type, and as a `SizeBias`
    where channels are to be taken.

    Raises: ValueError if channels are forced and cannot be.
    """
    mask = bias if bias.dtype == x.dtype else bias.to(x.dtype)
    if _chosen == "auto" and not x.is_cuda:  # known in two steps, where every step counts at batch 1
        return mask
    return size_bias_of(mask, bias) if may_take(why_not(x)) else mask


def why_not(x: Tensor) -> str:
    """Why attention over `x` takes sizes as a mask; empty if it takes them as channels."""
    if _chosen == "mask":
        return "the mask is forced"
    if _chosen == "auto" and not x.is_cuda:
        return f"flash attention takes a mask on {x.device.type}"
    if type(x) not in (Tensor, Parameter):
        return "a tensor subclass or a fake tensor cannot carry sizes besides the mask"
    if _chosen == "channels":
        return ""
    if is_compiling() or dispatch_modes() or is_tracing() or function_transform() is not None:
        return "what is compiled, exported, traced, transformed or counted takes the mask"
    return "" if attended_type(x) in HALF else "flash attention is for half precision"


def status() -> str:
    """What attention takes here, in words."""
    no_gpu = "" if _chosen != "auto" or torch.cuda.is_available() else "; PyTorch sees no GPU here"
    return f"{CHOICES[_chosen]}{no_gpu}"


def may_take(reason: str) -> bool:
    """Whether nothing speaks against channels.

    Raises: ValueError if something does and they are forced.
    """
    if reason and _chosen == "channels":
        raise InvalidValueError(f'sizes in attention are forced to "channels" but cannot be: {reason}; choose "auto"')
    return not reason


class SizeBias(Tensor):
    """A mask of log sizes of keys `(B, 1, 1, N)` which an attention that is called with it takes as channels; a mask
    like any other for all other operations. It must not be changed in place."""

    mask: Tensor  # the same as a plain tensor
    logs: Tensor  # the same in fp32

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            return attend(*args, **kwargs)
        if func in KEEP_SIZES and isinstance(args[0], SizeBias):
            mask = func(args[0].mask, *args[1:], **kwargs)
            moved = func is Tensor.to
            logs = args[0].logs.to(mask.device) if moved else func(args[0].logs, *args[1:], **kwargs)
            return size_bias_of(mask, logs) if mask.is_floating_point() else mask
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)


def size_bias_of(mask: Tensor, logs: Tensor) -> SizeBias:
    """`mask` with the same in fp32."""
    made = mask.as_subclass(SizeBias)
    made.mask, made.logs = mask, logs
    return made


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: SizeBias,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention` with the sizes in channels, or with the mask where they do not fit.

    Raises: ValueError if channels are forced and do not fit.
    """
    used = query.shape[-1] ** -0.5 if scale is None else scale
    mask, logs = attn_mask.mask, attn_mask.logs
    if not may_take(why_unfit(query, key, value, logs, used, is_causal)):
        return scaled_dot_product_attention(
            query, key, value, mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    parts = with_channels(query, key, value, logs, used)
    out = scaled_dot_product_attention(*parts, dropout_p=dropout_p, scale=used, enable_gqa=enable_gqa)
    return out[..., : value.shape[-1]]


def why_unfit(query: Tensor, key: Tensor, value: Tensor, logs: Tensor, scale: float, is_causal: bool) -> str:
    """Why this attention takes the mask; empty if it takes channels."""
    if any(type(t) not in (Tensor, Parameter) for t in (query, key, value)):
        return "queries, keys or values are a tensor subclass"
    if is_causal:
        return "the attention is causal"
    if query.ndim != 4 or logs.ndim != 4 or logs.shape[-1] != key.shape[-2]:
        return f"the mask {tuple(logs.shape)} is not one number a key of {tuple(key.shape)}"
    if any(logs.shape[axis] > 1 and logs.stride(axis) for axis in (1, 2)):
        return "the mask is not the same for all heads and queries"
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

"""Attention over tokens that stand for several: how their sizes reach it.

A token of size s counts s times if log s is added to the logits of its key. Libraries take that as a float mask, which
half precision rounds and which on a GPU switches flash attention off. There a `SizeBias` goes through the library's
code in its place, and the attention that is called with it takes the logarithms as they are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn import Parameter
from torch.nn.functional import scaled_dot_product_attention

from tokenreduce.errors import InvalidValueError, unknown
from tokenreduce.ops import size_channels
from tokenreduce.ops.modes import dispatch_modes, function_transform, is_tracing, without_subclasses
from tokenreduce.ops.size_channels import attended_type, with_channels
from tokenreduce.ops.tracing import exporting, to_onnx
from tokenreduce.ops.triton import launching

CHOICES = {
    "auto": "Triton's operator on CUDA in half precision, or channels where it cannot run; the mask elsewhere",
    "mask": "the mask everywhere",
    "channels": "channels everywhere, an error where they cannot be",
    "triton": "Triton's operator everywhere, an error where it cannot run",
}
HALF = (torch.float16, torch.bfloat16)
WIDEST = 128  # channels of a head in Triton's operator: more do not fit its registers
KEEP_SIZES = (Tensor.to, Tensor.expand, Tensor.__getitem__)  # what libraries do to a mask before attention
TYPE, *ASKED = (getattr(Tensor, name).__get__ for name in ("dtype", "shape", "ndim", "device", "is_cuda"))
ASKED += [Tensor.size, Tensor.dim]  # of the mask, which need not be made to answer

_chosen = os.environ.get("TOKENREDUCE_ATTENTION") or "auto"  # a wrong one is told on first use


def check() -> None:
    """Raise if the environment variable TOKENREDUCE_ATTENTION has a value that is none of `CHOICES`."""
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


def status() -> str:
    """What attention takes here, in words."""
    check()
    reason = "" if _chosen in ("mask", "channels") else launching.why_not()
    return f"{CHOICES[_chosen]}{reason and '; '}{reason}"


def size_mask(bias: Tensor, x: Tensor) -> Tensor:
    """Additive logits `bias (B, 1, 1, N)` as attention over `x (B, N, C)` takes them: a mask in its type, or a
    `SizeBias`.

    Raises: ValueError if one is forced and cannot be.
    """
    if (_chosen == "auto" and not x.is_cuda) or not may_take(why_not(x)):  # known at once: each step counts at batch 1
        mask = bias if bias.dtype == x.dtype else bias.to(x.dtype)
        # From opset 23 on attention is one operator, for which ONNX Runtime wants the mask of every query.
        return mask.expand(-1, -1, mask.shape[-1], -1) if to_onnx() else mask
    return size_bias_of(bias, x.dtype)


def why_not(x: Tensor) -> str:
    """Why attention over `x` takes sizes as a mask; empty if it takes a `SizeBias`."""
    if _chosen == "mask":
        return "the mask is forced"
    if _chosen == "auto" and not x.is_cuda:
        return f"flash attention takes a mask on {x.device.type}"
    check()
    if not (is_plain(x) or (_chosen != "auto" and isinstance(x, fake_tensor()))):
        return "a tensor subclass or a fake tensor cannot carry sizes besides the mask"
    if _chosen != "auto":
        return ""
    if exporting() or not (is_compiling() or runs_at_once()):
        return "what is exported, traced, transformed or counted takes the mask"
    return "" if attended_type(x) in HALF else "flash attention is for half precision"


def may_take(reason: str) -> bool:
    """Whether nothing speaks against the choice.

    Raises: ValueError if something does and it is forced.
    """
    if reason and _chosen not in ("auto", "mask"):
        raise InvalidValueError(f'sizes in attention are forced to "{_chosen}" but cannot be: {reason}; choose "auto"')
    return not reason


def is_plain(*tensors: Tensor) -> bool:
    return all(type(t) in (Tensor, Parameter) for t in tensors)


def runs_at_once() -> bool:
    """Whether nothing looks at operators; to be asked outside of `torch.compile` only."""
    return not (dispatch_modes() or is_tracing() or function_transform() is not None)


def fake_tensor() -> type[Tensor]:
    from torch._subclasses import FakeTensor

    return FakeTensor


class SizeBias(Tensor):
    """Log sizes of keys `(B, 1, 1, N)`, which an attention that is called with it takes as they are; a mask of the type
    `kind` like any other for all other operations. It must not be changed in place."""

    logs: Tensor  # in fp32
    kind: torch.dtype

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            return attend(*args, **kwargs)
        if func == TYPE:
            return args[0].kind
        if func in ASKED:
            return func(args[0].logs, *args[1:], **kwargs)
        if func in KEEP_SIZES and isinstance(args[0], SizeBias):
            return kept(func, *args, **kwargs)
        return func(*with_masks(args), **with_masks(kwargs))


def size_bias_of(logs: Tensor, kind: torch.dtype) -> SizeBias:
    if is_plain(logs):
        made = logs.as_subclass(SizeBias)
    else:  # fake tensors are a subclass themselves
        with without_subclasses():
            made = torch.empty(0, device="meta").as_subclass(SizeBias)
    made.logs, made.kind = logs, kind
    return made


def mask_of(bias: SizeBias) -> Tensor:
    return bias.logs if bias.logs.dtype == bias.kind else bias.logs.to(bias.kind)


def with_masks(value: Any) -> Any:
    """`value`, or arguments in it, with masks in the place of each `SizeBias`."""
    if isinstance(value, SizeBias):
        return mask_of(value)
    if isinstance(value, (list, tuple)):
        return type(value)([with_masks(part) for part in value])
    return {name: with_masks(part) for name, part in value.items()} if isinstance(value, dict) else value


def kept(func: Callable[..., Any], bias: SizeBias, *args: Any, **kwargs: Any) -> Tensor:
    """What one of `KEEP_SIZES` makes of it."""
    if func is not Tensor.to:
        return size_bias_of(func(bias.logs, *args, **kwargs), bias.kind)
    like = torch.empty(0, dtype=bias.kind, device=bias.logs.device).to(*args, **kwargs)
    return size_bias_of(bias.logs.to(like.device), like.dtype) if like.is_floating_point() else mask_of(bias).to(like)


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
    """`scaled_dot_product_attention` by the first of `WAYS` that fits, or with the mask where none does.

    Raises: ValueError if a way is forced and does not fit.
    """
    used = query.shape[-1] ** -0.5 if scale is None else scale
    way = way_of(query, key, value, attn_mask.logs, used, dropout_p, is_causal)
    if way == "triton":
        return by_triton(query, key, value, attn_mask.logs, used)
    if way == "mask":
        return scaled_dot_product_attention(
            query, key, value, mask_of(attn_mask), dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    parts = with_channels(query, key, value, attn_mask.logs, used)
    out = scaled_dot_product_attention(*parts, dropout_p=dropout_p, scale=used, enable_gqa=enable_gqa)
    return out[..., : value.shape[-1]]


def way_of(
    query: Tensor, key: Tensor, value: Tensor, logs: Tensor, scale: float, dropout: float, is_causal: bool
) -> str:
    """How this attention takes sizes: "triton", "channels" or "mask"."""
    unfit = why_unfit(query, key, value, logs, is_causal)
    if _chosen in ("auto", "triton") and may_take(unfit or why_not_triton(query, key, value, logs, dropout)):
        return "triton"
    fits = may_take(unfit or size_channels.why_unfit(query, scale))
    return "channels" if fits and _chosen != "mask" else "mask"


def why_unfit(query: Tensor, key: Tensor, value: Tensor, logs: Tensor, is_causal: bool) -> str:
    """Why this attention takes the mask; empty if something else may do."""
    if not all(is_plain(t) or isinstance(t, fake_tensor()) for t in (query, key, value)):
        return "queries, keys or values are a tensor subclass"
    if is_causal:
        return "the attention is causal"
    if query.ndim != 4 or logs.ndim != 4 or logs.shape[-1] != key.shape[-2]:
        return f"the mask {tuple(logs.shape)} is not one number a key of {tuple(key.shape)}"
    if any(logs.shape[axis] > 1 and logs.stride(axis) for axis in (1, 2)):
        return "the mask is not the same for all heads and queries"
    return ""


def why_not_triton(query: Tensor, key: Tensor, value: Tensor, logs: Tensor, dropout: float) -> str:
    """Why Triton's operator does not take this attention; empty if it does."""
    parts = (query, key, value)
    if not (query.is_cuda or launching.interpreted()):
        return f"Triton's operators do not run on {query.device.type}"
    alike = query.dtype == key.dtype == value.dtype  # all are on one device: asking costs microseconds
    kinds = {attended_type(t) for t in (parts[:1] if alike else parts)}
    if len(kinds) > 1 or not kinds <= {*HALF, torch.float32}:
        return f"queries, keys and values of {', '.join(map(str, kinds))} are not of one type up to fp32"
    if torch.is_grad_enabled() and any(t.requires_grad for t in (*parts, logs)):
        return "it has no backward"
    if dropout:
        return "it has no dropout"
    if logs.dtype != torch.float32 or logs.shape[0] not in (1, query.shape[0]):
        return f"log sizes {tuple(logs.shape)} of {logs.dtype} are not in fp32, one row for each image or for all"
    if value.shape != key.shape or query.shape[:2] != key.shape[:2] or query.shape[3] != key.shape[3]:
        return f"shapes {', '.join(str(tuple(t.shape)) for t in parts)} are not those of one attention"
    if query.shape[3] > WIDEST or any(t.stride(3) != 1 for t in parts) or not query.numel():
        return f"heads have {query.shape[3]} channels, not 1 to {WIDEST} in a row, or there is nothing to do"
    return launching.why_not()


def by_triton(query: Tensor, key: Tensor, value: Tensor, logs: Tensor, scale: float) -> Tensor:
    from tokenreduce.ops.triton.attend import attend as kernel  # Triton is imported only where it runs

    dtype = attended_type(query)
    parts = [t if t.dtype == dtype else t.to(dtype) for t in (query, key, value)]
    if is_compiling() or not runs_at_once() or not is_plain(query):
        return kernel.operator(*parts, logs, scale)  # type: ignore[attr-defined]
    return kernel(*parts, logs, scale)

"""Merging and restoring by integer maps, compiled; where `None` comes back the reference in `token_map` is to run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenreduce.ops.native.dispatch import choose


def merge_rows(
    x: Tensor, dest: Tensor | None, rep: Tensor, sources: Tensor, sizes: Tensor | None, prefix: int, suffix: int
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Size-weighted means `(B, prefix + M + suffix, C)` of `x (B, prefix + N + suffix, C)`, sizes `(B, M)` and their
    `size_bias`, for a `TokenMap` with these fields."""
    compiled = choose("merge_apply", x)
    if compiled is None or dest is None:
        return None
    if torch.is_grad_enabled() and x.requires_grad:
        return MergeRows.apply(compiled, x, dest, rep, sources, sizes, prefix, suffix)
    return compiled(x, dest, rep, sources, sizes, prefix, suffix)


def merge_fused(
    x: Tensor, rep: Tensor, sources: Tensor, mass: Tensor, counted: Tensor | None, prefix: int, suffix: int
) -> tuple[Tensor, Tensor, Tensor] | None:
    """`merge_rows` for a map whose sources all join the last output: tokens weigh `mass (B, N)` and count as `counted
    (B, N)` tokens, None: as 1."""
    kernel = choose("merge_fused", x)
    return None if kernel is None else kernel(x, rep, sources, mass, counted, prefix, suffix)


def restore_change(x: Tensor, after: Tensor, before: Tensor, dest: Tensor, prefix: int, suffix: int) -> Tensor | None:
    """`before (B, prefix + N + suffix, C)` plus what `after (B, prefix + M + suffix, C)` has become in `x` since, by
    `dest (B, N)`."""
    compiled = _restoring("restore_apply", x, after, before)
    return None if compiled is None else compiled(x, dest, before, after, prefix, suffix)


def krige_change(
    x: Tensor,
    after: Tensor,
    before: Tensor,
    dest: Tensor,
    prefix: int,
    suffix: int,
    nearest: int,
    reach: float,
    ridge: float,
    least: float,
) -> Tensor | None:
    """`restore_change`, plus what `maps.kriging` predicts beyond it with these constants."""
    compiled = _restoring("krige_apply", x, after, before)
    return None if compiled is None else compiled(x, dest, before, after, prefix, suffix, nearest, reach, ridge, least)


def _restoring(name: str, x: Tensor, after: Tensor, before: Tensor) -> Callable[..., Any] | None:
    if torch.is_grad_enabled() and (before.requires_grad or after.requires_grad):
        return None
    if not x.dtype == before.dtype == after.dtype:  # as autocast may leave them; PyTorch promotes
        return None
    return choose(name, x)


def size_bias(sizes: Tensor, prefix: int, suffix: int) -> Tensor:
    """Additive logits `(B, 1, 1, prefix + N + suffix)`: log size of each token, 0 for protected ones."""
    compiled = choose("size_bias", sizes)
    if compiled is not None:
        return compiled(sizes, prefix, suffix)
    return F.pad(sizes.log(), (prefix, suffix))[:, None, None, :]


class MergeRows(torch.autograd.Function):
    """The compiled kernel; a token gets the part of its output's gradient that it is of the output."""

    @staticmethod
    def forward(ctx: Any, compiled: Any, x: Tensor, dest: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        rep, sources, sizes, prefix, suffix = args
        out, grown, bias = compiled(x, dest, rep, sources, sizes, prefix, suffix)
        mass = torch.ones_like(dest, dtype=torch.float32) if sizes is None else sizes
        part = mass / grown.clamp_min(1e-12).gather(1, dest)
        # An output of padding alone has no mass and is its representative.
        part = part.scatter(1, rep, torch.where(grown > 0, part.gather(1, rep), 1.0))
        ctx.save_for_backward(dest, part)
        ctx.protected = prefix, suffix
        ctx.mark_non_differentiable(grown, bias)
        return out, grown, bias

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
        dest, part = ctx.saved_tensors
        prefix, suffix = ctx.protected
        end = grad.shape[1] - suffix
        image = grad[:, prefix:end].gather(1, dest[..., None].expand(-1, -1, grad.shape[2]))
        weighted = image * part[..., None].to(grad.dtype)
        whole = torch.cat([grad[:, :prefix], weighted, grad[:, end:]], 1)
        return None, whole, None, None, None, None, None, None

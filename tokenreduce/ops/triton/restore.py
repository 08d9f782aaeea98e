"""Tokens that come back, and what sizes add to attention, in one pass each."""

from __future__ import annotations

import torch
from torch import Tensor
from triton import jit
from triton import language as tl

from tokenreduce.ops.triton.launching import operator, start
from tokenreduce.ops.triton.rounding import next_power_of_2
from tokenreduce.ops.triton.tensors import in_a_row

CELLS = 4096
WIDEST = 1024


@operator
def restore_apply(
    y: Tensor, dest: Tensor, before: Tensor | None, after: Tensor | None, prefix: int, suffix: int
) -> Tensor:
    """`before (B, prefix + N + suffix, C)` plus what `after (B, prefix + M + suffix, C)` has become in `y` since, or
    the rows of `y` where both are None."""
    rows_of = (y, y if before is None else before, y if after is None else after)
    now, was, then = (in_a_row(t) for t in rows_of)
    dest = in_a_row(dest)
    batch, left, width = y.shape
    n = dest.shape[1]
    whole = prefix + n + suffix
    out = torch.empty(batch, whole, width, dtype=y.dtype, device=y.device)
    block_c = min(WIDEST, next_power_of_2(width))
    rows = max(1, min(64, CELLS // block_c))
    start(_restore, y)[(-(-whole // rows), batch, -(-width // block_c))](
        now, dest, was, then, out, *now.stride()[:2], dest.stride(0), *was.stride()[:2], *then.stride()[:2],
        n, left - prefix - suffix, prefix, suffix,
        WIDTH=width, CHANGE=before is not None, WIDE=y.dtype == torch.float64, ROWS=rows, BLOCK_C=block_c,
    )  # fmt: skip
    return out


@jit(do_not_specialize=["n", "keep", "prefix", "suffix", "stride_dest"])
def _restore(
    now, dest, was, then, out, stride_image, stride_token, stride_dest, was_image, was_token, then_image, then_token,
    n, keep, prefix, suffix,
    WIDTH: tl.constexpr, CHANGE: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    whole = prefix + n + suffix
    token = row - prefix
    is_image = (token >= 0) & (token < n)
    output = tl.load(dest + image * stride_dest + token, mask=is_image, other=0)
    at = tl.where(is_image, output + prefix, tl.where(token < 0, row, row - n + keep)).to(tl.int64)[:, None]
    inside = (row < whole)[:, None] & (column < WIDTH)[None, :]
    rows = tl.load(now + image * stride_image + at * stride_token + column[None, :], mask=inside, other=0.0)
    if CHANGE:
        sums = tl.float64 if WIDE else tl.float32
        here = row.to(tl.int64)[:, None]
        old = tl.load(was + image * was_image + here * was_token + column[None, :], mask=inside, other=0.0)
        merged = tl.load(then + image * then_image + at * then_token + column[None, :], mask=inside, other=0.0)
        rows = (old.to(sums) + (rows.to(sums) - merged.to(sums))).to(out.dtype.element_ty)
    tl.store(out + (image * whole + row[:, None]) * WIDTH + column[None, :], rows, mask=inside)


@operator
def size_bias(sizes: Tensor, prefix: int, suffix: int) -> Tensor:
    """Additive logits `(B, 1, 1, prefix + N + suffix)`: log size of each token, 0 for protected ones."""
    sizes = in_a_row(sizes)
    batch, n = sizes.shape
    whole = prefix + n + suffix
    out = torch.empty(batch, 1, 1, whole, dtype=torch.float32, device=sizes.device)
    start(_log_sizes, sizes)[(-(-whole // 256), batch)](sizes, out, sizes.stride(0), n, prefix, whole, BLOCK=256)
    return out


@jit(do_not_specialize=["n", "prefix", "whole", "stride_sizes"])
def _log_sizes(sizes, out, stride_sizes, n, prefix, whole, BLOCK: tl.constexpr):
    image = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    token = row - prefix
    is_image = (token >= 0) & (token < n)
    size = tl.load(sizes + image * stride_sizes + token, mask=is_image, other=1.0)
    tl.store(out + image * whole + row, tl.log(size), mask=row < whole)

"""Merging tokens in one pass, with their new sizes and what these add to attention."""

from __future__ import annotations

import torch
from torch import Tensor
from triton import jit, next_power_of_2
from triton import language as tl

from tokenreduce.ops.triton.launching import operator, start
from tokenreduce.ops.triton.match import bipartite_match
from tokenreduce.ops.triton.members import add_by_product, add_in_turn, is_finite

ROWS = 16  # outputs of a program
WIDEST = 128  # channels of a program
WARPS = 8


@operator
def merge_apply(
    x: Tensor,
    dest: Tensor,
    rep: Tensor,
    sources: Tensor,
    sizes: Tensor | None,
    prefix: int,
    suffix: int,
    counted: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Size-weighted means `(B, prefix + M + suffix, C)`, sizes `(B, M)` and their logs `(B, 1, 1, prefix + M + suffix)`,
    0 for protected tokens. Sums run in a fixed order; new sizes are those of `counted (B, N)`, if given."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    batch, _, width = x.shape
    keep = rep.shape[1]
    left = prefix + keep + suffix
    out = torch.empty(batch, left, width, dtype=x.dtype, device=x.device)
    grown = torch.empty(batch, keep, dtype=torch.float32, device=x.device)
    bias = torch.empty(batch, 1, 1, left, dtype=torch.float32, device=x.device)
    block_c = channels_of_tile(width)
    start(_merge, x)[(-(-left // ROWS), batch, -(-width // block_c))](
        x, dest, rep, sources, x if sizes is None else sizes,
        x if counted is None else counted, out, grown, bias, x.stride(0), x.stride(1),
        dest.stride(0), rep.stride(0), sources.stride(0), 0 if sizes is None else sizes.stride(0),
        0 if counted is None else counted.stride(0), dest.shape[1], keep, prefix, suffix,
        WIDTH=width, SIZED=sizes is not None, APART=counted is not None, PRODUCT=x.dtype != torch.float64,
        ROWS=ROWS, AT_ONCE=32, BLOCK_C=block_c, num_warps=WARPS,
    )  # fmt: skip
    return out, grown, bias


def channels_of_tile(width: int) -> int:
    """Channels of a program: as many as fit without much left over."""
    most = min(WIDEST, max(16, next_power_of_2(width)))
    return most if most < 128 or width % most == 0 else 128


@operator
def bipartite_merge(
    x: Tensor, metric: Tensor, sizes: Tensor | None, keep: int, first: int, prefix: int, suffix: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`bipartite_match` of the image tokens' rows of `metric`, and `merge_apply` of its map."""
    image = metric[..., prefix : metric.shape[-2] - suffix, :]
    maps = bipartite_match(image, keep, first)
    return *merge_apply(x, *maps, sizes, prefix, suffix), *maps


@jit(do_not_specialize=["n", "keep", "prefix", "suffix", "stride_dest", "stride_rep", "stride_sources",
                        "stride_sizes", "stride_counted"])  # fmt: skip
def _merge(
    x, dest, rep, sources, sizes, counted, out, grown, bias, stride_image, stride_token,
    stride_dest, stride_rep, stride_sources, stride_sizes, stride_counted, n, keep, prefix, suffix,
    WIDTH: tl.constexpr, SIZED: tl.constexpr, APART: tl.constexpr, PRODUCT: tl.constexpr,
    ROWS: tl.constexpr, AT_ONCE: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    x += image * stride_image
    dest += image * stride_dest
    sources += image * stride_sources
    sizes += image * stride_sizes
    counted += image * stride_counted
    left = prefix + keep + suffix
    output = row - prefix
    is_image = (output >= 0) & (output < keep)
    token = tl.load(rep + image * stride_rep + output, mask=is_image, other=0).to(tl.int32)
    mass = tl.where(is_image, 1.0, 0.0)
    if SIZED:
        mass = tl.load(sizes + token, mask=is_image, other=0.0)
    size = mass
    if APART:
        size = tl.load(counted + token, mask=is_image, other=0.0)
    from_row = tl.where(is_image, token + prefix, tl.where(output < 0, row, row - keep + n))
    inside = (row < left)[:, None] & (column < WIDTH)[None, :]
    own = tl.load(x + from_row.to(tl.int64)[:, None] * stride_token + column[None, :], mask=inside, other=0.0)
    centre = own.to(tl.float32 if PRODUCT else tl.float64)
    moved = tl.zeros_like(centre)
    for begin in range(0, n - keep, AT_ONCE):
        number = begin + tl.arange(0, AT_ONCE)
        is_source = number < n - keep
        source = tl.load(sources + number, mask=is_source, other=0).to(tl.int32)
        target = tl.load(dest + source, mask=is_source, other=-1).to(tl.int32)
        joins = (target[None, :] == output[:, None]) & is_image[:, None]
        weight = tl.where(is_source, 1.0, 0.0)
        if SIZED:
            weight = tl.load(sizes + source, mask=is_source, other=0.0)
        mass += tl.sum(tl.where(joins, weight[None, :], 0.0), 1)
        count = weight
        if APART:
            count = tl.load(counted + source, mask=is_source, other=0.0)
        size += tl.sum(tl.where(joins, count[None, :], 0.0), 1)
        needed = tl.max(joins.to(tl.int32), 0) > 0
        if tl.max(needed.to(tl.int32), 0) > 0:
            at = x + (source + prefix).to(tl.int64)[:, None] * stride_token + column[None, :]
            rows = tl.load(at, mask=needed[:, None] & (column < WIDTH)[None, :], other=0.0)
            by_product = PRODUCT
            if PRODUCT:
                by_product = is_finite(rows)
            if by_product:
                moved = add_by_product(moved, centre, rows, joins, weight)
            else:
                moved = add_in_turn(
                    moved, centre, x, dest, sources, sizes, begin, tl.minimum(begin + AT_ONCE, n - keep), prefix,
                    output, is_image, column, stride_token, WIDTH, SIZED,
                )  # fmt: skip
    merged = centre + moved / tl.maximum(mass, 1e-12)[:, None].to(centre.dtype)
    at = (image * left + row[:, None]) * WIDTH + column[None, :]
    tl.store(out + at, merged.to(out.dtype.element_ty), mask=inside)
    if tl.program_id(2) == 0:
        tl.store(grown + image * keep + output, size, mask=is_image)
        tl.store(bias + image * left + row, tl.where(is_image, tl.log(size), 0.0), mask=row < left)

"""Merging tokens in one pass, with their new sizes and what these add to attention."""

from __future__ import annotations

import torch
from torch import Tensor
from triton import jit, next_power_of_2
from triton import language as tl

from tokenreduce.ops.triton.launching import operator, start
from tokenreduce.ops.triton.match import bipartite_match

CELLS = 4096  # numbers of a tile of outputs
WIDEST = 1024  # channels of a tile
FEW = tl.constexpr(4)  # sources of one output that are added one after the other
NONE = tl.constexpr(2147483647)


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
    0 for protected tokens. Sums run in the order of `sources`; new sizes are those of `counted (B, N)`, if given."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    batch, _, width = x.shape
    keep = rep.shape[1]
    left = prefix + keep + suffix
    out = torch.empty(batch, left, width, dtype=x.dtype, device=x.device)
    grown = torch.empty(batch, keep, dtype=torch.float32, device=x.device)
    bias = torch.empty(batch, 1, 1, left, dtype=torch.float32, device=x.device)
    block_c = min(WIDEST, next_power_of_2(width))
    rows = max(1, min(16, CELLS // block_c))
    start(_merge, x)[(-(-left // rows), batch, -(-width // block_c))](
        x, dest, rep, sources, x if sizes is None else sizes,
        x if counted is None else counted, out, grown, bias, x.stride(0), x.stride(1),
        dest.stride(0), rep.stride(0), sources.stride(0), 0 if sizes is None else sizes.stride(0), 0 if counted is None else counted.stride(0),
        dest.shape[1], keep, prefix, suffix,
        WIDTH=width, SIZED=sizes is not None, APART=counted is not None, WIDE=x.dtype == torch.float64, ROWS=rows, AT_ONCE=64 if sources.shape[1] <= 64 else 256, BLOCK_C=block_c,
    )  # fmt: skip
    return out, grown, bias


@operator
def bipartite_merge(
    x: Tensor, metric: Tensor, sizes: Tensor | None, keep: int, first: int, prefix: int, suffix: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`bipartite_match` of the image tokens' rows of `metric`, and `merge_apply` of its map."""
    image = metric[..., prefix : metric.shape[-2] - suffix, :]
    maps = bipartite_match(image, keep, first)
    return *merge_apply(x, *maps, sizes, prefix, suffix), *maps


@jit(do_not_specialize=["n", "keep", "prefix", "suffix", "stride_dest", "stride_rep", "stride_sources",
                         "stride_sizes", "stride_counted"])
def _merge(
    x, dest, rep, sources, sizes, counted, out, grown, bias, stride_image, stride_token,
    stride_dest, stride_rep, stride_sources, stride_sizes, stride_counted, n, keep, prefix, suffix,
    WIDTH: tl.constexpr, SIZED: tl.constexpr, APART: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, AT_ONCE: tl.constexpr, BLOCK_C: tl.constexpr,
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
    token = tl.load(rep + image * stride_rep + output, mask=is_image, other=0)
    mass = tl.where(is_image, 1.0, 0.0)
    if SIZED:
        mass = tl.load(sizes + token, mask=is_image, other=0.0)
    size = mass
    if APART:
        size = tl.load(counted + token, mask=is_image, other=0.0)
    from_row = tl.where(is_image, token + prefix, tl.where(output < 0, row, row - keep + n)).to(tl.int64)
    inside = (row < left)[:, None] & (column < WIDTH)[None, :]
    centre = tl.load(x + from_row[:, None] * stride_token + column[None, :], mask=inside, other=0.0)
    centre = centre.to(tl.float64 if WIDE else tl.float32)
    moved = tl.zeros_like(centre)
    for begin in range(0, n - keep, AT_ONCE):
        number = begin + tl.arange(0, AT_ONCE)
        is_source = number < n - keep
        source = tl.load(sources + number, mask=is_source, other=0)
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
        if tl.max(tl.sum(joins.to(tl.int32), 1), 0) > FEW:
            moved = _add_all(
                moved, centre, x, dest, sources, sizes, begin, tl.minimum(begin + AT_ONCE, n - keep), prefix, output,
                is_image, column, stride_token, WIDTH, SIZED,
            )  # fmt: skip
        else:
            moved = _add_few(
                moved, centre, x, sources, sizes, number, joins, prefix, column, stride_token, WIDTH, SIZED
            )
    merged = centre + moved / tl.maximum(mass, 1e-12)[:, None].to(centre.dtype)
    at = (image * left + row[:, None]) * WIDTH + column[None, :]
    tl.store(out + at, merged.to(out.dtype.element_ty), mask=inside)
    if tl.program_id(2) == 0:
        tl.store(grown + image * keep + output, size, mask=is_image)
        tl.store(bias + image * left + row, tl.where(is_image, tl.log(size), 0.0), mask=row < left)


@jit
def _add_few(
    moved, centre, x, sources, sizes, number, joins, prefix, column, stride_token, WIDTH: tl.constexpr,
    SIZED: tl.constexpr,
):  # fmt: skip
    """`moved` and the sources that join: one of each output at a time, so that those that have none left load
    nothing."""
    next_one = tl.min(tl.where(joins, number[None, :], NONE), 1)
    while tl.min(next_one, 0) < NONE:
        joined = next_one < NONE
        member = tl.load(sources + next_one, mask=joined, other=0)
        part = tl.where(joined, 1.0, 0.0)
        if SIZED:
            part = tl.load(sizes + member, mask=joined, other=0.0)
        here = joined[:, None] & (column < WIDTH)[None, :]
        at = (member + prefix).to(tl.int64)[:, None] * stride_token + column[None, :]
        rows = tl.load(x + at, mask=here, other=0.0).to(centre.dtype)
        moved += tl.where(here, (rows - centre) * part[:, None].to(centre.dtype), 0.0)
        next_one = tl.min(tl.where(joins & (number[None, :] > next_one[:, None]), number[None, :], NONE), 1)
    return moved


@jit
def _add_all(
    moved, centre, x, dest, sources, sizes, begin, end, prefix, output, is_image, column, stride_token,
    WIDTH: tl.constexpr, SIZED: tl.constexpr,
):  # fmt: skip
    """The same, one source after the other whether it joins here or not: nothing waits for what was loaded before."""
    for number in tl.range(begin, end, num_stages=4):
        member = tl.load(sources + number)
        joins = is_image & (tl.load(dest + member).to(tl.int32) == output)
        part = 1.0
        if SIZED:
            part = tl.load(sizes + member)
        at = (member + prefix).to(tl.int64) * stride_token + column
        row = tl.load(x + at, mask=column < WIDTH, other=0.0).to(centre.dtype)
        moved += tl.where(joins[:, None], (row[None, :] - centre) * part, 0.0)
    return moved

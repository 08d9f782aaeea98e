"""Merging tokens in one pass, with their new sizes and what these add to attention."""

from __future__ import annotations

import torch
from torch import Tensor
from triton import jit
from triton import language as tl

from tokenreduce.ops.triton.launching import operator, start
from tokenreduce.ops.triton.match import bipartite_match
from tokenreduce.ops.triton.rounding import next_power_of_2
from tokenreduce.ops.triton.tensors import in_a_row

CELLS = 2048  # numbers of a tile of outputs
MANY = 600  # programs that fill a large GPU
AT_ONCE = 64  # sources looked at together
NONE = tl.constexpr(2147483647)


@operator
def merge_apply(
    x: Tensor, dest: Tensor, rep: Tensor, sources: Tensor, sizes: Tensor | None, prefix: int, suffix: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Size-weighted means `(B, prefix + M + suffix, C)`, sizes `(B, M)` and their logs `(B, 1, 1, prefix + M +
    suffix)`, 0 for protected tokens. Sums run in the order of `sources`."""
    x, dest, rep, sources = (in_a_row(t) for t in (x, dest, rep, sources))
    sizes = None if sizes is None else in_a_row(sizes)
    batch, _, width = x.shape
    keep = rep.shape[1]
    left = prefix + keep + suffix
    out, grown, bias = empty_outputs(x, keep, left)
    rows, block_c = tile_of(width, batch * left)
    start(_merge, x)[(-(-left // rows), batch)](
        x, dest, rep, sources, x if sizes is None else sizes, out, grown, bias, x.stride(0), x.stride(1),
        dest.stride(0), rep.stride(0), sources.stride(0), 0 if sizes is None else sizes.stride(0),
        dest.shape[1], keep, prefix, suffix,
        WIDTH=width, SIZED=sizes is not None, WIDE=x.dtype == torch.float64, ROWS=rows, AT_ONCE=AT_ONCE,
        BLOCK_C=block_c,
    )  # fmt: skip
    return out, grown, bias


def empty_outputs(x: Tensor, keep: int, left: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, sizes and attention bias, to be written."""
    batch, _, width = x.shape
    out = torch.empty(batch, left, width, dtype=x.dtype, device=x.device)
    grown = torch.empty(batch, keep, dtype=torch.float32, device=x.device)
    return out, grown, torch.empty(batch, 1, 1, left, dtype=torch.float32, device=x.device)


def tile_of(width: int, outputs: int) -> tuple[int, int]:
    """Rows and channels that a program has at once: of so many outputs, enough programs for the GPU."""
    block_c = 256 if width % 256 == 0 else min(128, max(16, next_power_of_2(width)))
    rows = max(1, min(16, CELLS // block_c))
    return rows if outputs // rows > MANY or rows == 1 else rows // 2, block_c


@operator
def bipartite_merge(
    x: Tensor, metric: Tensor, sizes: Tensor | None, keep: int, first: int, prefix: int, suffix: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`bipartite_match` of the image tokens' rows of `metric`, and `merge_apply` of its map."""
    image = metric[..., prefix : metric.shape[-2] - suffix, :]
    maps = bipartite_match(image, keep, first)
    return *merge_apply(x, *maps, sizes, prefix, suffix), *maps


@jit(do_not_specialize=["n", "keep", "prefix", "suffix", "stride_dest", "stride_rep", "stride_sources",
                        "stride_sizes"])  # fmt: skip
def _merge(
    x, dest, rep, sources, sizes, out, grown, bias, stride_image, stride_token,
    stride_dest, stride_rep, stride_sources, stride_sizes, n, keep, prefix, suffix,
    WIDTH: tl.constexpr, SIZED: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, AT_ONCE: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    x += image * stride_image
    dest += image * stride_dest
    sources += image * stride_sources
    sizes += image * stride_sizes
    left, removed = prefix + keep + suffix, n - keep
    output = row - prefix
    is_image = (output >= 0) & (output < keep)
    token = tl.load(rep + image * stride_rep + output, mask=is_image, other=0).to(tl.int32)
    mass = tl.where(is_image, 1.0, 0.0)
    if SIZED:
        mass = tl.load(sizes + token, mask=is_image, other=0.0)
    # The first two sources of each output, as numbers in the list; few outputs have more.
    one, two = tl.full([ROWS], NONE, tl.int32), tl.full([ROWS], NONE, tl.int32)
    members = tl.zeros([ROWS], tl.int32)
    for begin in range(0, removed, AT_ONCE):
        number, joins, weight = _joining(dest, sources, sizes, begin, removed, output, is_image, SIZED, AT_ONCE)
        mass += tl.sum(tl.where(joins, weight[None, :], 0.0), 1)
        members += tl.sum(joins.to(tl.int32), 1)
        first = tl.min(tl.where(joins, number[None, :], NONE), 1)
        second = tl.min(tl.where(joins & (number[None, :] > first[:, None]), number[None, :], NONE), 1)
        two = tl.where(one == NONE, second, tl.minimum(two, first))
        one = tl.minimum(one, first)
    inverse = 1 / tl.maximum(mass, 1e-12)
    row_one, part_one = _member(sources, sizes, one, inverse, prefix, SIZED)
    row_two, part_two = _member(sources, sizes, two, inverse, prefix, SIZED)
    more = tl.max(members, 0) > 2
    own = tl.where(is_image, token + prefix, tl.where(output < 0, row, row - keep + n)).to(tl.int64) * stride_token
    sums = tl.float64 if WIDE else tl.float32
    for begin in range(0, WIDTH, BLOCK_C):
        column = begin + tl.arange(0, BLOCK_C)
        inside = (row < left)[:, None] & (column < WIDTH)[None, :]
        centre = tl.load(x + own[:, None] + column[None, :], mask=inside, other=0.0).to(sums)
        has_one, has_two = inside & (one < NONE)[:, None], inside & (two < NONE)[:, None]
        a = tl.load(x + row_one[:, None] * stride_token + column[None, :], mask=has_one, other=0.0).to(sums)
        b = tl.load(x + row_two[:, None] * stride_token + column[None, :], mask=has_two, other=0.0).to(sums)
        merged = centre + tl.where(has_one, (a - centre) * part_one[:, None].to(sums), 0.0)
        merged += tl.where(has_two, (b - centre) * part_two[:, None].to(sums), 0.0)
        if more:
            merged = _add_rest(
                merged, centre, x, dest, sources, sizes, two, inverse, removed, output, is_image, inside, column,
                prefix, stride_token, SIZED, AT_ONCE,
            )  # fmt: skip
        tl.store(out + (image * left + row[:, None]) * WIDTH + column[None, :], merged.to(x.dtype.element_ty), inside)
    tl.store(grown + image * keep + output, mass, mask=is_image)
    tl.store(bias + image * left + row, tl.where(is_image, tl.log(mass), 0.0), mask=row < left)


@jit
def _joining(dest, sources, sizes, begin, removed, output, is_image, SIZED: tl.constexpr, AT_ONCE: tl.constexpr):
    """The next numbers in the list of sources, which outputs they join, and their weights."""
    number = begin + tl.arange(0, AT_ONCE)
    is_source = number < removed
    source = tl.load(sources + number, mask=is_source, other=0)
    target = tl.load(dest + source, mask=is_source, other=-1).to(tl.int32)
    weight = tl.where(is_source, 1.0, 0.0)
    if SIZED:
        weight = tl.load(sizes + source, mask=is_source, other=0.0)
    return number, (target[None, :] == output[:, None]) & is_image[:, None], weight


@jit
def _member(sources, sizes, number, inverse, prefix, SIZED: tl.constexpr):
    """Where the sources of these numbers stand, and which part of their outputs they are."""
    there = number < NONE
    member = tl.load(sources + number, mask=there, other=0)
    part = inverse
    if SIZED:
        part = tl.load(sizes + member, mask=there, other=0.0) * inverse
    return (member + prefix).to(tl.int64), part


@jit
def _add_rest(
    merged, centre, x, dest, sources, sizes, last, inverse, removed, output, is_image, inside, column, prefix,
    stride_token, SIZED: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """`merged` and the sources after `last` in the list: one of each output at a time."""
    for begin in range(0, removed, AT_ONCE):
        number, joins, _ = _joining(dest, sources, sizes, begin, removed, output, is_image, SIZED, AT_ONCE)
        following = tl.min(tl.where(joins & (number[None, :] > last[:, None]), number[None, :], NONE), 1)
        while tl.min(following, 0) < NONE:
            at, part = _member(sources, sizes, following, inverse, prefix, SIZED)
            here = inside & (following < NONE)[:, None]
            rows = tl.load(x + at[:, None] * stride_token + column[None, :], mask=here, other=0.0).to(centre.dtype)
            merged += tl.where(here, (rows - centre) * part[:, None].to(centre.dtype), 0.0)
            following = tl.min(tl.where(joins & (number[None, :] > following[:, None]), number[None, :], NONE), 1)
    return merged

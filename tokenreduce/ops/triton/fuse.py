"""Merging where all sources join the last output, as in `evit`: the others are copied."""

from __future__ import annotations

import torch
from torch import Tensor
from triton import jit
from triton import language as tl

from tokenreduce.ops.triton.launching import operator, start
from tokenreduce.ops.triton.merge import empty_outputs, tile_of
from tokenreduce.ops.triton.tensors import in_a_row

AT_ONCE = 32  # members added together
PART = 128  # channels of the last output that a program adds up


@operator
def merge_fused(
    x: Tensor, rep: Tensor, sources: Tensor, mass: Tensor, counted: Tensor | None, prefix: int, suffix: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As `merge_apply`, of tokens that weigh `mass (B, N)` and count as `counted (B, N)` tokens, None: as 1."""
    x, rep, sources, mass = (in_a_row(t) for t in (x, rep, sources, mass))
    counted = None if counted is None else in_a_row(counted)
    batch, all_before, width = x.shape
    keep = rep.shape[1]
    left = prefix + keep + suffix
    out, grown, bias = empty_outputs(x, keep, left)
    rows, block_c = tile_of(width, batch * left)
    tiles = -(-left // rows)
    part_c = min(PART, block_c)
    start(_fuse_rows, x)[(-(-width // part_c) + tiles, batch)](
        x, rep, sources, mass, mass if counted is None else counted, out, grown, bias, x.stride(0), x.stride(1),
        rep.stride(0), sources.stride(0), mass.stride(0), 0 if counted is None else counted.stride(0),
        all_before - prefix - suffix, keep, prefix, suffix,
        WIDTH=width, COUNTED=counted is not None, WIDE=x.dtype == torch.float64, ROWS=rows, AT_ONCE=AT_ONCE,
        BLOCK_C=block_c, PART_C=part_c,
    )  # fmt: skip
    return out, grown, bias


@jit(do_not_specialize=["n", "keep", "prefix", "suffix", "stride_rep", "stride_sources", "stride_mass",
                        "stride_counted"])  # fmt: skip
def _fuse_rows(
    x, rep, sources, mass, counted, out, grown, bias, stride_image, stride_token,
    stride_rep, stride_sources, stride_mass, stride_counted, n, keep, prefix, suffix,
    WIDTH: tl.constexpr, COUNTED: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, AT_ONCE: tl.constexpr,
    BLOCK_C: tl.constexpr, PART_C: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    x += image * stride_image
    rep += image * stride_rep
    sources += image * stride_sources
    mass += image * stride_mass
    counted += image * stride_counted
    left = prefix + keep + suffix
    out += image * left * WIDTH
    grown += image * keep
    bias += image * left
    # The first programs have the output that takes longest, a part of its channels each.
    parts: tl.constexpr = (WIDTH + PART_C - 1) // PART_C
    if tl.program_id(0) < parts:
        _write_fused(
            x, rep, sources, mass, counted, out, grown, bias, tl.program_id(0), n, keep, prefix, stride_token,
            WIDTH, COUNTED, WIDE, AT_ONCE, PART_C,
        )  # fmt: skip
    else:
        row = (tl.program_id(0) - parts) * ROWS + tl.arange(0, ROWS)
        _copy_rows(
            x, rep, counted, out, grown, bias, row, n, keep, prefix, left, stride_token, WIDTH, COUNTED, ROWS, BLOCK_C
        )


@jit
def _write_fused(
    x, rep, sources, mass, counted, out, grown, bias, part, n, keep, prefix, stride_token,
    WIDTH: tl.constexpr, COUNTED: tl.constexpr, WIDE: tl.constexpr, AT_ONCE: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The channels of one part of the last output."""
    sums = tl.float64 if WIDE else tl.float32
    column = part * BLOCK_C + tl.arange(0, BLOCK_C)
    is_channel = column < WIDTH
    token = tl.load(rep + keep - 1)
    centre = tl.load(x + (token + prefix).to(tl.int64) * stride_token + column, mask=is_channel, other=0.0).to(sums)
    added = tl.zeros([AT_ONCE, BLOCK_C], sums)
    weights, sizes = tl.zeros([AT_ONCE], tl.float32), tl.zeros([AT_ONCE], tl.float32)
    for begin in range(0, n - keep, AT_ONCE):
        number = begin + tl.arange(0, AT_ONCE)
        there = number < n - keep
        member = tl.load(sources + number, mask=there, other=0)
        weight = tl.load(mass + member, mask=there, other=0.0)
        inside = there[:, None] & is_channel[None, :]
        at = (member + prefix).to(tl.int64)[:, None] * stride_token + column[None, :]
        rows = tl.load(x + at, mask=inside, other=0.0).to(sums)
        added += tl.where(inside, (rows - centre[None, :]) * weight[:, None].to(sums), 0.0)
        weights += weight
        if COUNTED:
            sizes += tl.load(counted + member, mask=there, other=0.0)
    total = tl.sum(weights, 0) + tl.load(mass + token)
    merged = centre + tl.sum(added, 0) / tl.maximum(total, 1e-12).to(sums)
    tl.store(out + (prefix + keep - 1) * WIDTH + column, merged.to(x.dtype.element_ty), mask=is_channel)
    if part == 0:
        size = (n - keep + 1).to(tl.float32)
        if COUNTED:
            size = tl.sum(sizes, 0) + tl.load(counted + token)
        tl.store(grown + keep - 1, size)
        tl.store(bias + prefix + keep - 1, tl.log(size))


@jit
def _copy_rows(
    x, rep, counted, out, grown, bias, row, n, keep, prefix, left, stride_token,
    WIDTH: tl.constexpr, COUNTED: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """All other outputs of these rows, and protected tokens."""
    output = row - prefix
    is_image = (output >= 0) & (output < keep)
    copied = (row < left) & (output != keep - 1)
    token = tl.load(rep + output, mask=is_image, other=0).to(tl.int32)
    own = tl.where(is_image, token + prefix, tl.where(output < 0, row, row - keep + n)).to(tl.int64) * stride_token
    for begin in range(0, WIDTH, BLOCK_C):
        column = begin + tl.arange(0, BLOCK_C)
        inside = copied[:, None] & (column < WIDTH)[None, :]
        values = tl.load(x + own[:, None] + column[None, :], mask=inside, other=0.0)
        tl.store(out + row[:, None] * WIDTH + column[None, :], values, mask=inside)
    size = tl.full([ROWS], 1.0, tl.float32)
    if COUNTED:
        size = tl.load(counted + token, mask=is_image, other=1.0)
    tl.store(grown + output, size, mask=is_image & copied)
    tl.store(bias + row, tl.where(is_image, tl.log(size), 0.0), mask=copied)

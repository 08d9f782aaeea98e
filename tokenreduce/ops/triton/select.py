"""The map that keeps the tokens with most attention and fuses the others."""

from __future__ import annotations

import torch
from torch import Tensor
from triton import jit
from triton import language as tl

from tokenreduce.ops.triton.class_rows import Rows
from tokenreduce.ops.triton.launching import operator, start
from tokenreduce.ops.triton.pieces import among_greatest
from tokenreduce.ops.triton.rounding import next_power_of_2
from tokenreduce.ops.triton.tensors import empty_maps, in_a_row


@operator
def fuse_rest(score: Tensor, sizes: Tensor | None, keep: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The map of `evit` that keeps `keep` - 1 tokens with the greatest `score (B, N)` in fp32 and fuses the others.

    Returns:
        `dest (B, N)`, the share of each token, ones, `rep (B, M)`, `sources (B, N - M)` in ascending order, and the sum
        of the scores of those fused, `(B, 1)`.
    """
    return fuse_by(in_a_row(score)[:, None], sizes, keep, 0, score.shape[1])


@operator
def fuse_attended(
    queries: Tensor, keys: Tensor, bias: Tensor | None, class_tokens: int, prefix: int, count: int,
    sizes: Tensor | None, keep: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`fuse_rest` of the `count` tokens after `prefix` others by `class_rows`."""
    return fuse_by(Rows.of(queries, keys, bias, class_tokens).write(), sizes, keep, prefix, count)


def fuse_by(
    rows: Tensor, sizes: Tensor | None, keep: int, prefix: int, n: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`fuse_rest` by the mean of `rows (B, R, A)`, of last stride 1, which hold `prefix` other places first."""
    sizes = None if sizes is None else in_a_row(sizes)
    batch, count, _ = rows.shape
    dest, rep, sources = empty_maps(rows, n, keep)
    share, ones = torch.empty(2, batch, n, dtype=torch.float32, device=rows.device).unbind()
    total = torch.empty(batch, 1, dtype=torch.float32, device=rows.device)
    block = max(16, next_power_of_2(n))
    start(_fuse, rows)[(batch,)](
        rows, rows if sizes is None else sizes, dest, share, ones, rep, sources, total,
        rows.stride(0), rows.stride(1), 0 if sizes is None else sizes.stride(0), n, keep, prefix,
        ROWS=count, SIZED=sizes is not None, BLOCK=block, num_warps=4 if block <= 512 else 8,
    )  # fmt: skip
    return dest, share, ones, rep, sources, total


@jit(do_not_specialize=["stride_image", "stride_row", "stride_sizes", "n", "keep", "prefix"])
def _fuse(
    rows, sizes, dest, share, ones, rep, sources, total, stride_image, stride_row, stride_sizes, n, keep, prefix,
    ROWS: tl.constexpr, SIZED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, BLOCK)
    is_token = index < n
    rows += image * stride_image + prefix
    mine = tl.load(rows + index, mask=is_token, other=-float("inf"))
    for row in tl.static_range(1, ROWS):
        mine += tl.load(rows + row * stride_row + index, mask=is_token, other=0.0)
    mine /= ROWS
    ordered = tl.where(mine == mine, mine, float("inf")) + 0.0
    kept = among_greatest(ordered, is_token, keep - 1)
    dropped = is_token & (kept == 0)
    place = tl.cumsum(kept.to(tl.int32), 0) - 1
    tl.store(dest + image * n + index, tl.where(kept, place, keep - 1), mask=is_token)
    tl.store(rep + image * keep + place, index, mask=kept)
    of_dropped = tl.where(dropped, ordered, -float("inf"))
    is_best = dropped & (of_dropped == tl.max(of_dropped, 0))
    stand_in = tl.min(tl.where(is_best, index, BLOCK), 0)
    tl.store(rep + image * keep + keep - 1, stand_in)
    is_source = dropped & (index != stand_in)
    tl.store(sources + image * (n - keep) + tl.cumsum(is_source.to(tl.int32), 0) - 1, index, mask=is_source)
    # Attention to a token of size s already counts it s times: a share of a / s lets the sizes cancel.
    part = mine
    if SIZED:
        part = mine / tl.load(sizes + image * stride_sizes + index, mask=is_token, other=1.0)
    part = tl.where(part < 1e-12, 1e-12, part)  # a NaN stays
    tl.store(share + image * n + index, tl.where(kept, 1.0, part), mask=is_token)
    tl.store(ones + image * n + index, tl.full([BLOCK], 1.0, tl.float32), mask=is_token)
    tl.store(total + image, tl.sum(tl.where(dropped, mine, 0.0), 0))

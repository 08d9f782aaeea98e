"""Class attention, and the map that keeps the tokens with most of it and fuses the others."""

from __future__ import annotations

import torch
from torch import Tensor
from triton import jit
from triton import language as tl

from tokenreduce.ops.triton.launching import operator, start
from tokenreduce.ops.triton.pieces import among_greatest
from tokenreduce.ops.triton.rounding import next_power_of_2
from tokenreduce.ops.triton.tensors import empty_maps, in_a_row

LOG2_E = tl.constexpr(1.4426950408889634)
KEYS = 128  # keys of a tile


@operator
def class_rows(queries: Tensor, keys: Tensor, bias: Tensor | None, class_tokens: int) -> Tensor:
    """Attention of the first `class_tokens` of `queries (B, H, N, d)` to every token, `(B, N)` in fp32: mean over heads
    and class tokens. `bias (B or 1, 1, 1, N)` is in fp32."""
    batch, heads, n, width = keys.shape
    queries, keys = in_a_row(queries), in_a_row(keys)
    rows = torch.empty(batch, heads * class_tokens, n, dtype=torch.float32, device=keys.device)
    of_bias = (0, 0) if bias is None else (bias.stride(0) if bias.shape[0] > 1 else 0, bias.stride(3))
    start(_class_row, keys)[(heads * class_tokens, batch)](
        queries, keys, keys if bias is None else bias, rows, *queries.stride()[:3], *keys.stride()[:3], *of_bias,
        n, class_tokens, width**-0.5,
        WIDTH=width, BIASED=bias is not None, KEYS=KEYS, BLOCK_D=max(16, next_power_of_2(width)),
    )  # fmt: skip
    return rows.mean(1)


@jit(do_not_specialize=["n", "class_tokens", "stride_bias", "scale"])
def _class_row(
    queries, keys, bias, rows, query_image, query_head, query_token, key_image, key_head, key_token,
    stride_bias, bias_token, n, class_tokens, scale,
    WIDTH: tl.constexpr, BIASED: tl.constexpr, KEYS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    image, head = tl.program_id(1).to(tl.int64), tl.program_id(0) // class_tokens
    column = tl.arange(0, BLOCK_D)
    query = queries + image * query_image + head * query_head + tl.program_id(0) % class_tokens * query_token
    wanted = tl.load(query + column, mask=column < WIDTH, other=0.0).to(tl.float32) * (scale * LOG2_E)
    keys += image * key_image + head * key_head
    row = rows + (image * tl.num_programs(0) + tl.program_id(0)) * n
    greatest, total = tl.full([KEYS], -float("inf"), tl.float32), tl.zeros([KEYS], tl.float32)
    for begin in range(0, n, KEYS):
        number = begin + tl.arange(0, KEYS)
        inside = (number < n)[:, None] & (column < WIDTH)[None, :]
        key = tl.load(keys + number.to(tl.int64)[:, None] * key_token + column[None, :], mask=inside, other=0.0)
        logit = tl.sum(key.to(tl.float32) * wanted[None, :], 1)
        if BIASED:
            logit += tl.load(bias + image * stride_bias + number * bias_token, mask=number < n, other=0.0) * LOG2_E
        tl.store(row + number, logit, mask=number < n)
        larger = tl.maximum(greatest, tl.where(number < n, logit, -float("inf")))
        anchor = tl.where(larger == -float("inf"), 0.0, larger)
        total = total * tl.exp2(greatest - anchor) + tl.where(number < n, tl.exp2(logit - anchor), 0.0)
        greatest = larger
    highest = tl.max(greatest, 0)
    total = tl.sum(tl.where(greatest == -float("inf"), 0.0, total * tl.exp2(greatest - highest)), 0)
    tl.debug_barrier()
    for begin in range(0, n, KEYS):
        number = begin + tl.arange(0, KEYS)
        logit = tl.load(row + number, mask=number < n, other=0.0)
        tl.store(row + number, tl.exp2(logit - highest) / total, mask=number < n)


@operator
def fuse_rest(score: Tensor, sizes: Tensor | None, keep: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The map of `evit` that keeps `keep` - 1 tokens with the greatest `score (B, N)` in fp32 and fuses the others.

    Returns:
        `dest (B, N)`, the share of each token, ones, `rep (B, M)`, `sources (B, N - M)` in ascending order, and the sum
        of the scores of those fused, `(B, 1)`.
    """
    score, sizes = in_a_row(score), None if sizes is None else in_a_row(sizes)
    batch, n = score.shape
    dest, rep, sources = empty_maps(score, n, keep)
    share, ones = torch.empty(2, batch, n, dtype=torch.float32, device=score.device).unbind()
    total = torch.empty(batch, 1, dtype=torch.float32, device=score.device)
    block = max(16, next_power_of_2(n))
    start(_fuse, score)[(batch,)](
        score, score if sizes is None else sizes, dest, share, ones, rep, sources, total,
        score.stride(0), 0 if sizes is None else sizes.stride(0), n, keep,
        SIZED=sizes is not None, BLOCK=block, num_warps=4 if block <= 512 else 8,
    )  # fmt: skip
    return dest, share, ones, rep, sources, total


@jit(do_not_specialize=["stride_score", "stride_sizes", "n", "keep"])
def _fuse(
    score, sizes, dest, share, ones, rep, sources, total, stride_score, stride_sizes, n, keep,
    SIZED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, BLOCK)
    is_token = index < n
    mine = tl.load(score + image * stride_score + index, mask=is_token, other=-float("inf"))
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

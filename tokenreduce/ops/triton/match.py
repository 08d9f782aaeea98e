"""Bipartite matching by cosine: one program an image for up to 256 tokens, tiles of scores above."""

from __future__ import annotations

from torch import Tensor
from triton import jit
from triton import language as tl

from tokenreduce.ops.triton.launching import operator, start
from tokenreduce.ops.triton.pieces import best_of_row, halves, mean_rows, product, unit_rows, write_round
from tokenreduce.ops.triton.points import unit_points
from tokenreduce.ops.triton.rounding import next_power_of_2
from tokenreduce.ops.triton.tensors import empty_maps, in_a_row
from tokenreduce.ops.triton.tiled import match_points

SMALL = 256  # tokens that one program matches
NARROW = 128  # channels that it holds


@operator
def bipartite_match(metric: Tensor, keep: int, first: int) -> tuple[Tensor, Tensor, Tensor]:
    """`dest (B, N)`, `rep (B, M)` and `sources (B, N - M)` as `match_bipartite` makes them of `metric (B, N, d)`, or of
    the mean over heads of `(B, H, N, d)`."""
    metric = in_a_row(metric)
    headed = metric if metric.ndim == 4 else metric[:, None]
    batch, heads, n, width = headed.shape
    if n > SMALL or width > NARROW:
        points, tickets = unit_points(headed)
        return match_points(points, None, tickets[:, 0], keep, first)
    dest, rep, sources = empty_maps(headed, n, keep)
    block = max(16, next_power_of_2((n + 1) // 2))
    start(_match_image, metric)[(batch,)](
        headed, dest, rep, sources, *headed.stride()[:3], n, keep, first,
        WIDTH=width, HEADS=heads, BLOCK=block, BLOCK_D=max(16, next_power_of_2(width)),
        num_warps=8 if block > 64 else 4,
    )  # fmt: skip
    return dest, rep, sources


@jit(do_not_specialize=["n", "keep", "first"])
def _match_image(
    keys, dest, rep, sources, stride_image, stride_head, stride_token, n, keep, first,
    WIDTH: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    index, column = tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    count = (n - first + 1) // 2
    is_source, is_target, is_channel = index < count, index < n - count, column < WIDTH
    keys += image * stride_image
    sources_at = (first + 2 * index)[:, None] * stride_token + column[None, :]
    targets_at = (1 - first + 2 * index)[:, None] * stride_token + column[None, :]
    a = unit_rows(mean_rows(keys, stride_head, sources_at, is_source[:, None] & is_channel[None, :], HEADS))
    b = unit_rows(mean_rows(keys, stride_head, targets_at, is_target[:, None] & is_channel[None, :], HEADS))
    a_high, a_low = halves(a)
    b_high, b_low = halves(b)
    score = product(a_high, a_low, b_high, b_low, tl.zeros([BLOCK, BLOCK], tl.float32))
    best, match = best_of_row(score, index, is_target, tl.sum(a, 1) != tl.sum(a, 1), tl.sum(b, 1) != tl.sum(b, 1))
    write_round(best, match, index, n, keep, first, dest + image * n, rep + image * keep, sources + image * (n - keep))

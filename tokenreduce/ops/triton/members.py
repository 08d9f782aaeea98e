"""Adding the members of outputs to them, a tile of both at a time."""

from __future__ import annotations

from triton import jit
from triton import language as tl


@jit
def is_finite(rows):
    """Whether no number of a tile is NaN or infinite."""
    return tl.max(tl.max((tl.abs(rows.to(tl.float32)) < float("inf")).to(tl.int32) ^ 1, 1), 0) == 0


@jit
def add_by_product(moved, centre, rows, joins, weight):
    """`moved (M, C)` plus `weight (S,)` times (row - centre) of each of `rows (S, C)` that joins an output, `joins
    (M, S)`: by tensor cores in fp32 precision. Rows must be finite, as 0 times infinity is not 0."""
    share = tl.where(joins, weight[None, :], 0.0)
    total = tl.sum(share, 1)
    if rows.dtype == tl.float32:
        summed = tl.dot(share, rows, input_precision="tf32x3")
    else:
        # What is left of a weight after each part in half precision; fp32 has as many digits as three of bfloat16.
        scale = tl.maximum(tl.max(share, 1), 1e-30)[:, None]
        left = share / scale
        high = left.to(rows.dtype)
        summed = tl.dot(high, rows)
        left -= high.to(tl.float32)
        middle = left.to(rows.dtype)
        summed = tl.dot(middle, rows, summed)
        if rows.dtype == tl.bfloat16:
            summed = tl.dot((left - middle.to(tl.float32)).to(rows.dtype), rows, summed)
        summed *= scale
    return moved + (summed - total[:, None] * centre)


@jit
def add_in_turn(
    moved, centre, x, dest, sources, sizes, begin, end, prefix, output, is_image, column, stride_token,
    WIDTH: tl.constexpr, SIZED: tl.constexpr,
):  # fmt: skip
    """The same of the sources from `begin` to `end`, one after the other."""
    for number in range(begin, end):
        member = tl.load(sources + number)
        joins = is_image & (tl.load(dest + member).to(tl.int32) == output)
        part = 1.0
        if SIZED:
            part = tl.load(sizes + member)
        at = (member + prefix).to(tl.int64) * stride_token + column
        row = tl.load(x + at, mask=column < WIDTH, other=0.0).to(centre.dtype)
        moved += tl.where(joins[:, None], (row[None, :] - centre) * part, 0.0)
    return moved

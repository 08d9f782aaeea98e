"""Pieces of several kernels: unit rows, ranks, and the map of a bipartition."""

from __future__ import annotations

from triton import jit
from triton import language as tl


@jit
def mean_unit_rows(heads, stride_head, offsets, inside, HEADS: tl.constexpr):
    """Unit rows in fp32 of the mean over heads of `heads[offsets]`; zero rows stay zero, NaN and infinity make NaN."""
    total = tl.load(heads + offsets, mask=inside, other=0.0).to(tl.float32)
    for head in tl.static_range(1, HEADS):
        total += tl.load(heads + head * stride_head + offsets, mask=inside, other=0.0).to(tl.float32)
    mean = total / HEADS
    length = tl.sqrt(tl.sum(mean * mean, 1))
    return mean / tl.maximum(length, 1e-6)[:, None]


@jit
def product(a, b, total):
    """`total (A, T)` plus the products of rows of `a (A, d)` and `b (T, d)`, which are about 1 long, in fp32 precision:
    by tensor cores, of halves that add up to them. 4096 times too large, so that the lower halves stay normal."""
    a, b = a * 64, b * 64
    a_high, b_high = a.to(tl.float16), b.to(tl.float16)
    a_low, b_low = (a - a_high.to(tl.float32)).to(tl.float16), (b - b_high.to(tl.float32)).to(tl.float16)
    total = tl.dot(a_low, tl.trans(b_high), total)
    total = tl.dot(a_high, tl.trans(b_low), total)
    return tl.dot(a_high, tl.trans(b_high), total)


@jit
def best_of_row(score, index, is_target):
    """The greatest score `(A,)` of each row of `score (A, T)` and the lowest index that has it; NaN is greatest."""
    ordered = tl.where(score == score, score, float("inf"))
    ordered = tl.where(is_target[None, :], ordered, -float("inf"))
    best = tl.max(ordered, 1)
    lowest = tl.where((ordered == best[:, None]) & is_target[None, :], index[None, :], 2147483647)
    return best, tl.min(lowest, 1)


@jit
def ranks(score, index, counts):
    """How many of those that count come before each in the stable descending order."""
    higher = score[None, :] > score[:, None]
    same_but_earlier = (score[None, :] == score[:, None]) & (index[None, :] < index[:, None])
    return tl.sum(((higher | same_but_earlier) & counts[None, :]).to(tl.int32), 1)


@jit
def ward_scores(scaled, squares, target_squares, mass, target_mass):
    """Minus what merging adds to Ward's criterion, of what `product` gives of points, their squared lengths and sizes."""
    distance = squares[:, None] + target_squares[None, :] - scaled * (2 / 4096)
    return -distance / (1 / mass[:, None] + 1 / target_mass[None, :])


@jit
def write_round(score, match, index, n, keep, first, to, rep, sources):
    """Write the map of one image that merges the n - keep best sources, as `merge_best` does; all in one block; whether each moves."""
    count = (n - first + 1) // 2
    removed = n - keep
    kept = count - removed
    is_source, is_target = index < count, index < n - count
    rank = ranks(score, index, is_source)
    moved, stays = is_source & (rank < removed), is_source & (rank >= removed)
    place = tl.cumsum(stays.to(tl.int32), 0) - 1
    source, target = first + 2 * index, 1 - first + 2 * index
    tl.store(to + source, tl.where(moved, kept + match, place), mask=is_source)
    tl.store(to + target, kept + index, mask=is_target)
    tl.store(rep + place, source, mask=stays)
    tl.store(rep + kept + index, target, mask=is_target)
    tl.store(sources + rank, source, mask=moved)


@jit
def among_greatest(score, counts, wanted):
    """Whether each of those that count is among the `wanted` first in the stable descending order; no NaN."""
    bits = score.to(tl.int32, bitcast=True)
    # Unsigned numbers in the order of the scores.
    key = tl.where(bits < 0, ~bits, bits ^ -2147483648).to(tl.uint32, bitcast=True)
    least = tl.zeros([1], tl.uint32)
    for bit in range(32):
        higher = least | (tl.full([1], 2147483648, tl.uint32) >> bit)
        enough = tl.sum(((key >= higher) & counts).to(tl.int32), 0) >= wanted
        least = tl.where(enough, higher, least)
    above = (key > least) & counts
    equal = (key == least) & counts
    left = wanted - tl.sum(above.to(tl.int32), 0)
    return above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= left))

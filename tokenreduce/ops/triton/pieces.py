"""Pieces of several kernels: unit rows, ranks, and the map of a bipartition."""

from __future__ import annotations

from triton import jit
from triton import language as tl

NONE = tl.constexpr(2147483647)


@jit
def mean_rows(heads, stride_head, offsets, inside, HEADS: tl.constexpr):
    """The mean over heads of `heads[offsets]` in fp32."""
    total = tl.load(heads + offsets, mask=inside, other=0.0).to(tl.float32)
    for head in tl.static_range(1, HEADS):
        total += tl.load(heads + head * stride_head + offsets, mask=inside, other=0.0).to(tl.float32)
    return total / HEADS


@jit
def unit_rows(rows):
    """Rows of length 1; zero rows stay zero, NaN and infinity make NaN."""
    length = tl.sqrt(tl.sum(rows * rows, 1))
    return rows / tl.maximum(length, 1e-6)[:, None]


@jit
def halves(rows):
    """Two tensors in half precision that add up to 64 times `rows`, which are about 1 long: so that the lower halves
    stay normal numbers."""
    rows = rows * 64
    high = rows.to(tl.float16)
    return high, (rows - high.to(tl.float32)).to(tl.float16)


@jit
def product(a_high, a_low, b_high, b_low, total):
    """`total (A, T)` plus 4096 times the products of the rows of a `(A, d)` and b `(T, d)`, in fp32 precision by tensor
    cores; from their `halves`."""
    total = tl.dot(a_low, tl.trans(b_high), total)
    total = tl.dot(a_high, tl.trans(b_low), total)
    return tl.dot(a_high, tl.trans(b_high), total)


@jit
def best_of_row(score, index, is_target, strange, strange_target):
    """The greatest score `(A,)` of each row of `score (A, T)`, and the lowest index that has it.

    NaN is greatest: scores are NaN in the rows of `strange (A,)` and in the columns of `strange_target (T,)`.
    """
    ordered = score + tl.where(is_target, 0.0, -float("inf"))[None, :]
    best = tl.max(ordered, 1)
    match = tl.min(tl.where(ordered == best[:, None], index[None, :], NONE), 1)
    lowest = tl.min(tl.where(strange_target & is_target, index, NONE), 0)
    match = tl.where(strange, tl.min(index, 0), tl.where(lowest < NONE, lowest, match))
    return tl.where(strange | (lowest < NONE), float("inf"), best), match


@jit
def ranks(score, index, counts):
    """How many of those that count come before each in the stable descending order; no score is NaN."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 2147483647)  # integers in the order of the scores
    # Numbers of their own, the lower index first among equals.
    key = tl.where(counts, ordered.to(tl.int64) * 65536 - index, -(2**62))
    return tl.sum((key[None, :] > key[:, None]).to(tl.int32), 1)


@jit
def ward_scores(scaled, squares, target_squares, mass, target_mass, FAST: tl.constexpr):
    """Minus what merging adds to Ward's criterion, from what `product` gives of points, their squared lengths and
    their sizes."""
    distance = squares[:, None] + target_squares[None, :] - scaled * (2 / 4096)
    inverse = 1 / mass[:, None] + 1 / target_mass[None, :]
    return -distance * reciprocal(inverse, FAST)


@jit
def reciprocal(x, FAST: tl.constexpr):
    """1 / x, as the hardware approximates it in one instruction if `FAST`: exact for powers of two."""
    if FAST:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    return 1 / x


@jit
def write_round(score, match, index, n, keep, first, to, rep, sources):
    """Write the map of one image that merges the n - keep best sources, as `merge_best` does; all in one block."""
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
    unit = tl.full([1], 1 << 30, tl.uint32)
    for _ in range(16):  # two bits at a time: three counts of at most 2^20 fit one sum
        one, two, three = least | unit, least | (unit << 1), least | unit | (unit << 1)
        reached = (key >= one).to(tl.int64) + ((key >= two).to(tl.int64) << 20) + ((key >= three).to(tl.int64) << 40)
        total = tl.sum(tl.where(counts, reached, 0), 0)
        least = tl.where((total & 1048575) >= wanted, one, least)
        least = tl.where(((total >> 20) & 1048575) >= wanted, two, least)
        least = tl.where((total >> 40) >= wanted, three, least)
        unit = unit >> 2
    above = (key > least) & counts
    equal = (key == least) & counts
    left = wanted - tl.sum(above.to(tl.int32), 0)
    return above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= left))

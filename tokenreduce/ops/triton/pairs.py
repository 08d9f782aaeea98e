"""Pairs of clusters that are each other's nearest, merged at once; and the keys by which clusters are compared."""

from __future__ import annotations

import torch
from torch import Tensor
from triton import jit, next_power_of_2
from triton import language as tl

from tokenreduce.ops.triton.launching import start

# A key tells of a cluster, from the highest bits on: the least cost of merging it, its place, the place of the other,
# and whether that is out of date. The least key of all is the pair to merge, the first of equals.
PLACES = tl.constexpr(16383)  # bits of a place
GONE = tl.constexpr(2**63 - 1)  # the key of a cluster that is none any more
ABSENT = tl.constexpr(-1.0)  # its size
ROWS = 64  # pairs that are merged at once
DEEP = 64  # channels of theirs
EACH = 128  # clusters of a warp


def merge_pairs(points: Tensor, keys: Tensor, mass: Tensor, done: Tensor, wanted: int, first: bool) -> None:
    """Merge all pairs of `points (B, N, d)` of sizes `mass (B, N)` that are each other's nearest by `keys (B, T, N)`,
    each at the place of its first; `done (B, N)` tells which merge ended each, and has nothing yet at the `first` call.
    Merges that cannot be among the `wanted` cheapest are left out where so many are done."""
    batch, n, width = points.shape
    block = max(32, next_power_of_2(n))
    start(_merge_pairs, points)[(batch,)](
        points, keys, mass, done, torch.empty(batch, 2 * n, dtype=torch.int32, device=points.device),
        n, wanted, keys.shape[1],
        WIDTH=width, FIRST=first, BLOCK=block, ROWS=ROWS, DEEP=min(DEEP, max(16, next_power_of_2(width))),
        num_warps=min(16, max(4, block // EACH)), num_stages=1,
    )  # fmt: skip


@jit(do_not_specialize=["n", "wanted", "parts"])
def _merge_pairs(
    points, keys, mass, done, scratch, n, wanted, parts,
    WIDTH: tl.constexpr, FIRST: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, DEEP: tl.constexpr,
):  # fmt: skip
    """Two clusters that are each other's nearest stay so whatever else merges, because what merging costs only grows
    (Ward's criterion is reducible): merging them early changes nothing but the order."""
    image = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, BLOCK)
    points += image * n * WIDTH
    mass += image * n
    done += image * n
    nearest = scratch + image * 2 * n
    listed = nearest + n
    key = least_keys(keys + image * parts * n, index, n, parts, BLOCK)
    theirs = ((key >> 1) & PLACES).to(tl.int32)
    tl.store(nearest + index, theirs, mask=index < n)
    merges = (key != GONE) & (index < theirs)
    if FIRST:
        tl.store(done + index, tl.full([BLOCK], GONE, tl.int64), mask=index < n)
    else:
        limit = nth_least(tl.load(done + index, mask=index < n, other=GONE), wanted)
        merges = merges & (key < limit)
    tl.debug_barrier()
    merges = merges & (tl.load(nearest + theirs, mask=merges, other=-1) == index)
    tl.store(done + theirs, key, mask=merges)
    tl.store(listed + tl.cumsum(merges.to(tl.int32), 0) - 1, index, mask=merges)
    count = tl.sum(merges.to(tl.int32), 0)
    tl.debug_barrier()
    for begin in range(0, count, ROWS):
        pair = begin + tl.arange(0, ROWS)
        there = pair < count
        into = tl.load(listed + pair, mask=there, other=0)
        gone = tl.load(nearest + into, mask=there, other=0)
        a, b = tl.load(mass + into, mask=there, other=1.0), tl.load(mass + gone, mask=there, other=1.0)
        share = (b / tl.maximum(a + b, 1e-12))[:, None]
        for channel in range(0, WIDTH, DEEP):
            column = channel + tl.arange(0, DEEP)
            inside = there[:, None] & (column < WIDTH)[None, :]
            x = tl.load(points + into[:, None] * WIDTH + column[None, :], mask=inside, other=0.0)
            y = tl.load(points + gone[:, None] * WIDTH + column[None, :], mask=inside, other=0.0)
            tl.debug_barrier()  # several threads may have read what one of them overwrites
            tl.store(points + into[:, None] * WIDTH + column[None, :], x + share * (y - x), mask=inside)
        tl.store(mass + into, a + b, mask=there)
        tl.store(mass + gone, tl.full([ROWS], ABSENT, tl.float32), mask=there)


@jit
def least_keys(keys, index, n, parts, BLOCK: tl.constexpr):
    """The least of the `parts` keys of each cluster."""
    key = tl.full([BLOCK], GONE, tl.int64)
    for part in range(parts):
        key = tl.minimum(key, tl.load(keys + part * n + index, mask=index < n, other=GONE))
    return key


@jit
def nth_least(key, wanted):
    """The key `(1,)` that has `wanted - 1` others below it; almost `GONE` if there are not so many, 0 for none."""
    half = key >> 1  # of keys that are not out of date
    least = tl.zeros([1], tl.int64)
    unit = tl.full([1], 1 << 60, tl.int64)
    for _ in range(31):  # two bits at a time: three counts of at most 2^20 fit one sum
        one, two, three = least | unit, least | (unit << 1), least | unit | (unit << 1)
        below = (half < one).to(tl.int64) + ((half < two).to(tl.int64) << 20) + ((half < three).to(tl.int64) << 40)
        total = tl.sum(below, 0)
        following = tl.where((total & 1048575) < wanted, one, least)
        following = tl.where(((total >> 20) & 1048575) < wanted, two, following)
        least = tl.where((total >> 40) < wanted, three, following)
        unit = unit >> 2
    return least << 1

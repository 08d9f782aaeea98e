"""Matching of more tokens than one program holds: a program a tile of sources; the last one of an image chooses."""

from __future__ import annotations

import torch
from torch import Tensor
from triton import jit
from triton import language as tl

from tokenreduce.ops.triton.launching import has_assembly, is_hopper, start
from tokenreduce.ops.triton.pieces import among_greatest, best_of_row, halves, product, ward_scores
from tokenreduce.ops.triton.rounding import next_power_of_2
from tokenreduce.ops.triton.tensors import empty_maps

TILE = 64  # sources of a program, and targets that it compares with at once
DEEP = 64  # channels multiplied at once
MOST_SPLITS = 8  # programs that share the targets of a tile of sources
PROGRAMS = 264  # that run at once on a large GPU


def match_points(
    points: Tensor, mass: Tensor | None, tickets: Tensor, keep: int, first: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`dest (B, N)`, `rep (B, M)` and `sources (B, N - M)` of one round over `points (B, N, d)` in fp32: the greatest
    product, or with sizes `mass (B, N)` the least of Ward's costs.

    Args:
        tickets: `(B,)` in int32, zeros, which are counted up.
    """
    batch, n, width = points.shape
    count = (n - first + 1) // 2
    device = points.device
    dest, rep, sources = empty_maps(points, n, keep)
    tiles = max(1, -(-count // TILE))
    # Few images leave processors free: they share the targets.
    splits = max(1, min(MOST_SPLITS, PROGRAMS // (tiles * batch), -(-(n - count) // TILE)))
    best = torch.empty(batch, splits, count, dtype=torch.float32, device=device)
    match = torch.empty(batch, splits, count, dtype=torch.int32, device=device)
    # Ward's scores take registers, of which GPUs before Hopper have too few for whole rows.
    deep = DEEP if mass is None or is_hopper(points) else DEEP // 2
    start(_match_tile, points)[(tiles, splits, batch)](
        points, points if mass is None else mass, best, match, tickets, dest, rep, sources, tickets.stride(0),
        n, keep, first,
        WIDTH=width, WARD=mass is not None, FAST=has_assembly(), TILE=TILE,
        DEEP=min(deep, max(16, next_power_of_2(width))),
        BLOCK=max(16, next_power_of_2(count)), num_warps=8, num_stages=1,
    )  # fmt: skip
    return dest, rep, sources


@jit(do_not_specialize=["n", "keep", "first", "stride_tickets"])
def _match_tile(
    points, mass, best, match, tickets, dest, rep, sources, stride_tickets, n, keep, first,
    WIDTH: tl.constexpr, WARD: tl.constexpr, FAST: tl.constexpr, TILE: tl.constexpr, DEEP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(2).to(tl.int64)
    count = (n - first + 1) // 2
    index = tl.program_id(0) * TILE + tl.arange(0, TILE)
    splits, each = tl.num_programs(1), tl.cdiv(tl.cdiv(n - count, TILE), tl.num_programs(1)) * TILE
    begin = tl.program_id(1) * each
    score, chosen = _best_targets(
        points + image * n * WIDTH, mass + image * n, index, begin, tl.minimum(begin + each, n - count), n, first,
        WIDTH, WARD, FAST, TILE, DEEP,
    )  # fmt: skip
    best += image * splits * count
    match += image * splits * count
    own = tl.program_id(1) * count + index
    tl.store(best + own, score, mask=index < count)
    tl.store(match + own, chosen, mask=index < count)
    tl.debug_barrier()  # all threads have stored before one of them says so
    done = tl.atomic_add(tickets + image * stride_tickets, 1, sem="acq_rel", scope="gpu")
    if done == tl.num_programs(0) * splits - 1:
        tl.debug_barrier()
        _choose(
            best, match, dest + image * n, rep + image * keep, sources + image * (n - keep), splits, n, keep, first,
            BLOCK, TILE,
        )  # fmt: skip


@jit
def _best_targets(
    points, mass, index, begin, end, n, first, WIDTH: tl.constexpr, WARD: tl.constexpr, FAST: tl.constexpr,
    TILE: tl.constexpr, DEEP: tl.constexpr,
):  # fmt: skip
    """The greatest score of the sources `index (TILE,)` and the lowest target from `begin` to `end` that has it."""
    count = (n - first + 1) // 2
    is_source = index < count
    source = (first + 2 * index)[:, None] * WIDTH
    best = tl.full([TILE], -float("inf"), tl.float32)
    chosen = tl.zeros([TILE], tl.int32)
    size = tl.load(mass + first + 2 * index, mask=is_source & WARD, other=1.0)
    for tile in range(begin, end, TILE):
        number = tile + tl.arange(0, TILE)
        is_target = number < n - count
        target = (1 - first + 2 * number)[:, None] * WIDTH
        scores = tl.zeros([TILE, TILE], tl.float32)
        squares, target_squares = tl.zeros([TILE], tl.float32), tl.zeros([TILE], tl.float32)
        for channel in range(0, WIDTH, DEEP):
            column = channel + tl.arange(0, DEEP)
            inside = (column < WIDTH)[None, :]
            a = tl.load(points + source + column[None, :], mask=is_source[:, None] & inside, other=0.0)
            b = tl.load(points + target + column[None, :], mask=is_target[:, None] & inside, other=0.0)
            a_high, a_low = halves(a)
            b_high, b_low = halves(b)
            scores = product(a_high, a_low, b_high, b_low, scores)
            squares += tl.sum(a * a, 1)
            target_squares += tl.sum(b * b, 1)
        if WARD:
            target_size = tl.load(mass + 1 - first + 2 * number, mask=is_target, other=1.0)
            scores = ward_scores(scores, squares, target_squares, size, target_size, FAST)
        strange = squares != squares
        score, place = best_of_row(scores, number, is_target, strange, target_squares != target_squares)
        better = score > best
        best, chosen = tl.where(better, score, best), tl.where(better, place, chosen)
    return best, chosen


@jit
def _choose(best, match, dest, rep, sources, splits, n, keep, first, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """Write the map of one image that merges the n - keep best sources, as `merge_best` does, without a sort."""
    count = (n - first + 1) // 2
    removed = n - keep
    kept = count - removed
    index = tl.arange(0, BLOCK)
    is_source = index < count
    # Other programs wrote these: not from a cache that does not know of them.
    score = tl.load(best + index, mask=is_source, other=-float("inf"), cache_modifier=".cg") + 0.0
    partner = tl.load(match + index, mask=is_source, other=0, cache_modifier=".cg")
    for split in range(1, splits):
        at = split * count + index
        other = tl.load(best + at, mask=is_source, other=-float("inf"), cache_modifier=".cg") + 0.0
        partner = tl.where(other > score, tl.load(match + at, mask=is_source, other=0, cache_modifier=".cg"), partner)
        score = tl.maximum(other, score)
    moved = among_greatest(score, is_source, removed)
    stays = is_source & (moved == 0)
    place = tl.cumsum(stays.to(tl.int32), 0) - 1
    source = first + 2 * index
    tl.store(dest + source, tl.where(moved, kept + partner, place), mask=is_source)
    tl.store(rep + place, source, mask=stays)
    for begin in range(0, n - count, BLOCK):
        number = begin + index
        is_target = number < n - count
        tl.store(dest + 1 - first + 2 * number, kept + number, mask=is_target)
        tl.store(rep + kept + number, 1 - first + 2 * number, mask=is_target)
    # The moved ones in ascending order first, where the others' scores are no longer needed; then by rank.
    listed = tl.cumsum(moved.to(tl.int32), 0) - 1
    tl.debug_barrier()
    tl.store(best + listed, score, mask=moved)
    tl.store(match + listed, source, mask=moved)
    tl.debug_barrier()
    for begin in range(0, removed, TILE):
        number = begin + tl.arange(0, TILE)
        is_moved = number < removed
        mine = tl.load(best + number, mask=is_moved, other=0.0)
        rank = tl.zeros([TILE], tl.int32)
        for other in range(0, removed, TILE):
            against = other + tl.arange(0, TILE)
            theirs = tl.load(best + against, mask=against < removed, other=-float("inf"))
            first_of_equals = (theirs[None, :] == mine[:, None]) & (against[None, :] < number[:, None])
            before = ((theirs[None, :] > mine[:, None]) | first_of_equals) & (against < removed)[None, :]
            rank += tl.sum(before.to(tl.int32), 1)
        tl.store(sources + rank, tl.load(match + number, mask=is_moved, other=0), mask=is_moved)

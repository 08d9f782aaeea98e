"""The rounds of `ward`: all in one program an image for up to 256 tokens, a launch a round above."""

from __future__ import annotations

import torch
from torch import Tensor
from triton import jit, next_power_of_2
from triton import language as tl

from tokenreduce.ops.triton.launching import operator, start
from tokenreduce.ops.triton.match import SMALL, empty_maps
from tokenreduce.ops.triton.merge import merge_apply
from tokenreduce.ops.triton.pieces import best_of_row, product, ward_scores, write_round
from tokenreduce.ops.triton.points import sketched_points
from tokenreduce.ops.triton.tiled import match_points

WIDEST = 64  # channels that one program holds of each token
MOST_ROUNDS = 4  # that one program does
PART = tl.constexpr(32)  # targets or sources that it holds at once, for the registers


@operator
def ward_match(
    features: Tensor, sizes: Tensor | None, signs: Tensor | None, width: int, counts: list[int], first: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`dest (B, N)`, `rep (B, M)` and `sources (B, N - M)` of the rounds that leave `counts` of `features (B, N, C)`."""
    features = features if features.stride(-1) == 1 else features.contiguous()
    batch, n, _ = features.shape
    points, mass, tickets = sketched_points(features, sizes, signs, width, max(1, len(counts)))
    if n > SMALL or width > WIDEST or not 1 <= len(counts) <= MOST_ROUNDS:
        return _rounds_apart(points, mass, tickets, counts, first)
    dest, rep, sources = empty_maps(features, n, counts[-1])
    block = max(16, next_power_of_2((n + 1) // 2))
    step = torch.empty(batch, 2, 4 * block, dtype=torch.int32, device=features.device)
    more = [counts[i] if i < len(counts) else counts[-1] for i in range(MOST_ROUNDS)]
    start(_ward_image, features)[(batch,)](
        points, mass, torch.empty_like(points), torch.empty_like(mass), step, dest, rep, sources, n, *more, len(counts), first,
        WIDTH=width, BLOCK=block, BLOCK_D=max(16, next_power_of_2(width)), num_warps=8 if block > 64 else 4,
    )  # fmt: skip
    return dest, rep, sources


def _rounds_apart(
    points: Tensor, mass: Tensor, tickets: Tensor, counts: list[int], first: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with a launch for each round, one for what it merges, and their maps put together."""
    if not counts:
        same = torch.arange(points.shape[1], device=points.device).expand(points.shape[0], -1).contiguous()
        return same, same.clone(), same[:, :0].contiguous()
    dest, rep, sources = match_points(points, mass, tickets[:, 0], counts[0], first)
    step = dest, rep, sources
    for number, left in enumerate(counts[1:], 1):
        points, mass, _ = merge_apply(points, *step, mass, 0, 0)
        step = match_points(points, mass, tickets[:, number], left, first)
        sources = torch.cat([sources, rep.gather(1, step[2])], 1)
        dest, rep = step[0].gather(1, dest), rep.gather(1, step[1])
    return dest, rep, sources


@jit(do_not_specialize=["n", "count_0", "count_1", "count_2", "count_3", "rounds", "first"])
def _ward_image(
    points, mass, other_points, other_mass, step, dest, rep, sources, n, count_0, count_1, count_2, count_3, rounds,
    first, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    index, both = tl.arange(0, BLOCK), tl.arange(0, 2 * BLOCK)
    final = _count_of(rounds - 1, count_0, count_1, count_2, count_3)
    dest += image * n
    rep += image * final
    sources += image * (n - final)
    # Scratch: who stands for the tokens that are left, and the map of a round.
    origin = step + image * 8 * BLOCK
    to, stands, gone = origin + 2 * BLOCK, origin + 4 * BLOCK, origin + 6 * BLOCK
    tl.store(origin + both, both, mask=both < n)
    tl.store(dest + both, both, mask=both < n)
    now = n
    for number in range(rounds):
        left = _count_of(number, count_0, count_1, count_2, count_3)
        # Points and sizes go to and fro between two places.
        here = tl.where(number % 2 == 0, points, other_points) + image * n * WIDTH
        there = tl.where(number % 2 == 0, other_points, points) + image * n * WIDTH
        size_here = tl.where(number % 2 == 0, mass, other_mass) + image * n
        size_there = tl.where(number % 2 == 0, other_mass, mass) + image * n
        _score_round(here, size_here, to, stands, gone, now, left, first, WIDTH, BLOCK, BLOCK_D)
        tl.debug_barrier()
        is_gone = index < now - left
        place = tl.load(dest + both, mask=both < n, other=0)
        moves_to = tl.load(to + place, mask=both < n, other=0)
        stays = tl.load(stands + both, mask=both < left, other=0)
        stand_in = tl.load(origin + stays, mask=both < left, other=0)
        removed = tl.load(origin + tl.load(gone + index, mask=is_gone, other=0), mask=is_gone, other=0)
        tl.store(sources + n - now + index, removed, mask=is_gone)
        tl.debug_barrier()
        tl.store(dest + both, moves_to, mask=both < n)
        tl.store(origin + both, stand_in, mask=both < left)
        tl.store(rep + both, stand_in, mask=(both < left) & (number == rounds - 1))
        _merge_round(here, size_here, there, size_there, to, gone, now, left, first, WIDTH, BLOCK, BLOCK_D)
        tl.debug_barrier()
        now = left


@jit
def _count_of(number, count_0, count_1, count_2, count_3):
    return tl.where(number < 2, tl.where(number == 0, count_0, count_1), tl.where(number == 2, count_2, count_3))


@jit
def _rows(points, place, counts, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    column = tl.arange(0, BLOCK_D)
    inside = counts[:, None] & (column < WIDTH)[None, :]
    return tl.load(points + place[:, None] * WIDTH + column[None, :], mask=inside, other=0.0)


@jit
def _score_round(
    points, mass, to, stands, gone, n, keep, first, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Write the map of one round."""
    index = tl.arange(0, BLOCK)
    count = (n - first + 1) // 2
    is_source = index < count
    a = _rows(points, first + 2 * index, is_source, WIDTH, BLOCK_D)
    squares = tl.sum(a * a, 1)
    s = tl.load(mass + first + 2 * index, mask=is_source, other=1.0)
    best, match = tl.full([BLOCK], -float("inf"), tl.float32), tl.zeros([BLOCK], tl.int32)
    for begin in range(0, n - count, PART):
        number = begin + tl.arange(0, PART)
        is_target = number < n - count
        b = _rows(points, 1 - first + 2 * number, is_target, WIDTH, BLOCK_D)
        t = tl.load(mass + 1 - first + 2 * number, mask=is_target, other=1.0)
        products = product(a, b, tl.zeros([BLOCK, PART], tl.float32))
        score, place = best_of_row(ward_scores(products, squares, tl.sum(b * b, 1), s, t), number, is_target)
        match = tl.where(score > best, place, match)
        best = tl.maximum(score, best)
    write_round(best, match, index, n, keep, first, to, stands, gone)


@jit
def _members(mass, to, gone, begin, count, output):
    """Which of the next sources join each output, their sizes and where they are."""
    number = begin + tl.arange(0, PART)
    is_gone = number < count
    member = tl.load(gone + number, mask=is_gone, other=0)
    goes = tl.load(to + member, mask=is_gone, other=-1)
    return goes[None, :] == output[:, None], tl.load(mass + member, mask=is_gone, other=0.0), member


@jit
def _merge_round(
    points, mass, new_points, new_mass, to, gone, n, keep, first,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write the points and sizes that a round leaves."""
    index, column = tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    count = (n - first + 1) // 2
    is_source, is_target, is_channel = index < count, index < n - count, (column < WIDTH)[None, :]
    source, target, kept = first + 2 * index, 1 - first + 2 * index, count - (n - keep)
    s = tl.load(mass + source, mask=is_source, other=1.0)
    t = tl.load(mass + target, mask=is_target, other=1.0)
    place = tl.load(to + source, mask=is_source, other=0)
    alone = is_source & (place < kept)
    row = _rows(points, source, alone, WIDTH, BLOCK_D)
    tl.store(new_points + place[:, None] * WIDTH + column[None, :], row, mask=alone[:, None] & is_channel)
    tl.store(new_mass + place, s, mask=alone)
    grown = t
    for begin in range(0, n - keep, PART):
        joins, part, _ = _members(mass, to, gone, begin, n - keep, kept + index)
        grown += tl.sum(tl.where(joins, part[None, :], 0.0), 1)
    middle = _rows(points, target, is_target, WIDTH, BLOCK_D) * (t / grown)[:, None] * 4096
    for begin in range(0, n - keep, PART):
        joins, part, member = _members(mass, to, gone, begin, n - keep, kept + index)
        share = tl.where(joins, part[None, :] / grown[:, None], 0.0)
        rows = _rows(points, member, begin + tl.arange(0, PART) < n - keep, WIDTH, BLOCK_D)
        middle = product(share, tl.trans(rows), middle)
    place = kept + index
    middle = middle / 4096
    tl.store(new_points + place[:, None] * WIDTH + column[None, :], middle, mask=is_target[:, None] & is_channel)
    tl.store(new_mass + place, grown, mask=is_target)

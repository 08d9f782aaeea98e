"""The rounds of `ward`: all in one program an image for up to 256 tokens, a launch a round above."""

from __future__ import annotations

import torch
from torch import Tensor
from triton import jit
from triton import language as tl

from tokenreduce.ops.triton.class_rows import Weights, weighing, weights_of
from tokenreduce.ops.triton.launching import has_assembly, operator, start
from tokenreduce.ops.triton.match import SMALL
from tokenreduce.ops.triton.merge import merge_apply
from tokenreduce.ops.triton.pieces import best_of_row, halves, product, ranks, ward_scores
from tokenreduce.ops.triton.points import sketched_points
from tokenreduce.ops.triton.rounding import cdiv, next_power_of_2
from tokenreduce.ops.triton.tensors import empty_maps, in_a_row
from tokenreduce.ops.triton.tiled import match_points

WIDEST = 64  # channels that one program holds of each token
MOST_ROUNDS = 4  # that one program does
PART = 32  # targets that it holds at once, for its registers
WARPS = 8
TOKENS = 256  # that a program weighs


@operator
def ward_match(
    features: Tensor, sizes: Tensor | None, signs: Tensor | None, width: int, counts: list[int], first: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`dest (B, N)`, `rep (B, M)` and `sources (B, N - M)` of the rounds that leave `counts` of `features (B, N, C)`,
    compared by sketches of `width` channels."""
    sizes = None if sizes is None else in_a_row(sizes)
    made = sketched_points(in_a_row(features), sizes, signs, width, max(1, len(counts)))
    return match_in_rounds(*made, counts, first)


def match_in_rounds(
    points: Tensor, mass: Tensor, tickets: Tensor, counts: list[int], first: int, weights: Weights | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The map of these rounds over `points (B, N, d)` in fp32 of sizes `mass (B, N)`, both of which are overwritten.
    Tokens weigh their sizes, or by them and `weights`."""
    batch, n, width = points.shape
    weighed, constants = weighing(weights, points)
    if n > SMALL or width > WIDEST or not 1 <= len(counts) <= MOST_ROUNDS:
        if weights is not None and counts:
            start(_weigh, points)[(cdiv(n, TOKENS), batch)](mass, *weighed, n, **constants, BLOCK=TOKENS)
        return _rounds_apart(points, mass, tickets, counts, first)
    dest, rep, sources = empty_maps(points, n, counts[-1])
    block = max(16, next_power_of_2((n + 1) // 2))
    scratch = torch.empty(batch, 2 * block, dtype=torch.int32, device=points.device)
    more = [counts[i] if i < len(counts) else counts[-1] for i in range(MOST_ROUNDS)]
    start(_ward_image, points)[(batch,)](
        points, mass, torch.empty_like(points), torch.empty_like(mass), scratch, dest, rep, sources, n, *more,
        len(counts), *weighed,
        **constants, FIRST=first, WIDTH=width, FAST=has_assembly(), BLOCK=block, PART=min(PART, block),
        BLOCK_D=max(16, next_power_of_2(width)), num_warps=WARPS if block > 64 else 4, num_stages=1,
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


@jit(do_not_specialize=["length", "prefix", "part", "least", "n"])
def _weigh(
    mass, rows, length, prefix, part, least, n, ROWS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    image = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    _weigh_tokens(
        mass + image * n, rows + image * ROWS * length + prefix, token, n, length, part, least, ROWS, BLOCK_ROWS
    )


@jit
def _weigh_tokens(mass, rows, token, n, length, part, least, ROWS: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """Put what tokens weigh in the place of their sizes."""
    size = tl.load(mass + token, mask=token < n, other=1.0)
    weight = weights_of(size, rows, token, n, length, part, least, ROWS, BLOCK_ROWS)
    tl.store(mass + token, weight, mask=token < n)


@jit(do_not_specialize=["n", "count_0", "count_1", "count_2", "count_3", "rounds", "length", "prefix", "part",
                        "least"])  # fmt: skip
def _ward_image(
    points, mass, other_points, other_mass, scratch, dest, rep, sources, n, count_0, count_1, count_2, count_3, rounds,
    rows, length, prefix, part, least,
    ROWS: tl.constexpr, BLOCK_ROWS: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr, FAST: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    index, token = tl.arange(0, BLOCK), tl.arange(0, 2 * BLOCK)
    if ROWS > 0:
        _weigh_tokens(
            mass + image * n, rows + image * ROWS * length + prefix, token, n, length, part, least, ROWS, BLOCK_ROWS
        )
        tl.debug_barrier()
    final = _count_of(rounds - 1, count_0, count_1, count_2, count_3)
    place = token  # where each token is now, and whether it stands for those there
    stands = token < n
    now = n
    for number in range(rounds):
        left = _count_of(number, count_0, count_1, count_2, count_3)
        count, removed = (now - FIRST + 1) // 2, now - left
        kept = count - removed
        # Points and sizes go to and fro between two places.
        here = tl.where(number % 2 == 0, points, other_points) + image * n * WIDTH
        size_here = tl.where(number % 2 == 0, mass, other_mass) + image * n
        is_source = index < count
        a = _rows(here, FIRST + 2 * index, is_source, WIDTH, BLOCK_D)
        s = tl.load(size_here + FIRST + 2 * index, mask=is_source, other=1.0)
        best, match = _best_targets(here, size_here, a, s, now - count, FIRST, WIDTH, FAST, BLOCK, BLOCK_D, PART)
        rank = ranks(best, index, is_source)
        moved = is_source & (rank < removed)
        alone = is_source & (rank >= removed)
        alone_place = tl.cumsum(alone.to(tl.int32), 0) - 1
        # For each place the next one, and its rank + 1 if it merges.
        of_source = tl.where(moved, kept + match + (rank + 1) * 65536, alone_place) & 2147483647
        of_target = kept + index
        step = tl.interleave(of_source, of_target) if FIRST == 0 else tl.interleave(of_target, of_source)
        mine = tl.where(token < n, tl.gather(step, place, 0), 0)
        merges = stands & (mine >= 65536)
        tl.store(sources + image * (n - final) + n - now + mine // 65536 - 1, token, mask=merges)
        stands = stands & (mine < 65536)
        place = mine % 65536
        if number < rounds - 1:
            there = tl.where(number % 2 == 0, other_points, points) + image * n * WIDTH
            size_there = tl.where(number % 2 == 0, other_mass, mass) + image * n
            gone = scratch + image * 2 * BLOCK
            tl.store(gone + rank, index, mask=moved)
            tl.store(gone + BLOCK + rank, match, mask=moved)
            _put(there, size_there, alone_place, a, s, alone, WIDTH, BLOCK_D)
            tl.debug_barrier()
            _merge_targets(
                here, size_here, there, size_there, gone, removed, kept, now - count, FIRST, WIDTH, BLOCK, BLOCK_D, PART
            )
            tl.debug_barrier()
        now = left
    tl.store(dest + image * n + token, place, mask=token < n)
    tl.store(rep + image * final + place, token, mask=stands)


@jit
def _best_targets(
    points, mass, a, s, targets, first, WIDTH: tl.constexpr, FAST: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """The greatest score of the sources `a (A, d)` of sizes `s`, and the lowest target that has it."""
    squares = tl.sum(a * a, 1)
    a_high, a_low = halves(a)
    best, match = tl.full([BLOCK], -float("inf"), tl.float32), tl.zeros([BLOCK], tl.int32)
    for begin in range(0, targets, PART):
        number = begin + tl.arange(0, PART)
        is_target = number < targets
        b = _rows(points, 1 - first + 2 * number, is_target, WIDTH, BLOCK_D)
        t = tl.load(mass + 1 - first + 2 * number, mask=is_target, other=1.0)
        b_high, b_low = halves(b)
        score = product(a_high, a_low, b_high, b_low, tl.zeros([BLOCK, PART], tl.float32))
        target_squares = tl.sum(b * b, 1)
        score = ward_scores(score, squares, target_squares, s, t, FAST)
        strange = squares != squares
        score, lowest = best_of_row(score, number, is_target, strange, target_squares != target_squares)
        match = tl.where(score > best, lowest, match)
        best = tl.maximum(score, best)
    return best, match


@jit
def _merge_targets(
    points, mass, new_points, new_mass, gone, removed, kept, targets, first,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Write the targets with the sources that move into them; `gone` has those, and then their matches."""
    index = tl.arange(0, BLOCK)
    is_target = index < targets
    t = tl.load(mass + 1 - first + 2 * index, mask=is_target, other=1.0)
    grown = t
    for begin in range(0, removed, PART):
        share, _ = _share_of(mass, gone, begin, removed, first, BLOCK, PART)
        grown += tl.sum(share, 0)
    inverse = 1 / grown
    middle = _rows(points, 1 - first + 2 * index, is_target, WIDTH, BLOCK_D) * (t * inverse * 4096)[:, None]
    for begin in range(0, removed, PART):
        share, source = _share_of(mass, gone, begin, removed, first, BLOCK, PART)
        rows = _rows(points, source, begin + tl.arange(0, PART) < removed, WIDTH, BLOCK_D)
        share_high, share_low = halves(share * inverse[None, :])
        high, low = halves(rows)
        middle = product(tl.trans(share_high), tl.trans(share_low), tl.trans(high), tl.trans(low), middle)
    _put(new_points, new_mass, kept + index, middle / 4096, grown, is_target, WIDTH, BLOCK_D)


@jit
def _share_of(mass, gone, begin, removed, first, BLOCK: tl.constexpr, PART: tl.constexpr):
    """What the next sources add to each target's size `(PART, T)`, and where they stand."""
    number = begin + tl.arange(0, PART)
    source = first + 2 * tl.load(gone + number, mask=number < removed, other=0)
    match = tl.load(gone + BLOCK + number, mask=number < removed, other=-1)
    size = tl.load(mass + source, mask=number < removed, other=0.0)
    return tl.where(match[:, None] == tl.arange(0, BLOCK)[None, :], size[:, None], 0.0), source


@jit
def _count_of(number, count_0, count_1, count_2, count_3):
    return tl.where(number < 2, tl.where(number == 0, count_0, count_1), tl.where(number == 2, count_2, count_3))


@jit
def _rows(points, place, counts, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    column = tl.arange(0, BLOCK_D)
    inside = counts[:, None] & (column < WIDTH)[None, :]
    return tl.load(points + place[:, None] * WIDTH + column[None, :], mask=inside, other=0.0)


@jit
def _put(points, mass, place, rows, sizes, counts, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    column = tl.arange(0, BLOCK_D)
    inside = counts[:, None] & (column < WIDTH)[None, :]
    tl.store(points + place[:, None] * WIDTH + column[None, :], rows, mask=inside)
    tl.store(mass + place, sizes, mask=counts)

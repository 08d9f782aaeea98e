"""The rounds of `ward`: all in one program an image for up to 256 tokens, a launch a round above."""

from __future__ import annotations

import torch
from torch import Tensor
from triton import jit, next_power_of_2
from triton import language as tl

from tokenreduce.ops.triton.launching import operator, start
from tokenreduce.ops.triton.match import SMALL, empty_maps
from tokenreduce.ops.triton.merge import merge_apply
from tokenreduce.ops.triton.pieces import best_of_row, ward_scores, write_round
from tokenreduce.ops.triton.points import sketched_points
from tokenreduce.ops.triton.tiled import match_points

WIDEST = 64  # channels that one program holds of each token
MOST_ROUNDS = 4  # that one program does


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
        points, mass, torch.empty_like(points), torch.empty_like(mass), step, dest, rep, sources, n, *more, first, width,
        ROUNDS=len(counts), BLOCK=block, BLOCK_D=max(16, next_power_of_2(width)), num_warps=8 if block > 64 else 4,
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


@jit(do_not_specialize=["n", "count_0", "count_1", "count_2", "count_3", "first", "width"])
def _ward_image(
    points, mass, other_points, other_mass, step, dest, rep, sources, n, count_0, count_1, count_2, count_3, first,
    width, ROUNDS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    counts = (count_0, count_1, count_2, count_3)
    index, column = tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    both = tl.arange(0, 2 * BLOCK)
    final = counts[ROUNDS - 1]
    dest += image * n
    rep += image * final
    sources += image * (n - final)
    # Two rows of scratch: where tokens are now and who stands for them; and the same of the step.
    origin = step + image * 8 * BLOCK
    to, stands, gone = origin + 2 * BLOCK, origin + 4 * BLOCK, origin + 6 * BLOCK
    here, size_here = points + image * n * width, mass + image * n
    there, size_there = other_points + image * n * width, other_mass + image * n
    tl.store(origin + both, both, mask=both < n)
    now = n
    for number in tl.static_range(ROUNDS):
        left = counts[number]
        count = (now - first + 1) // 2
        is_source, is_target = index < count, index < now - count
        source, target = first + 2 * index, 1 - first + 2 * index
        is_channel = (column < width)[None, :]
        a = tl.load(here + source[:, None] * width + column[None, :], mask=is_source[:, None] & is_channel, other=0.0)
        b = tl.load(here + target[:, None] * width + column[None, :], mask=is_target[:, None] & is_channel, other=0.0)
        s = tl.load(size_here + source, mask=is_source, other=1.0)
        t = tl.load(size_here + target, mask=is_target, other=1.0)
        product = tl.dot(a, tl.trans(b), input_precision="tf32x3")
        score = ward_scores(product, tl.sum(a * a, 1), tl.sum(b * b, 1), s, t)
        best, match = best_of_row(score, index, is_target)
        moved, _ = write_round(best, match, index, now, left, first, to, stands, gone)
        kept = count - (now - left)
        tl.debug_barrier()
        # The map so far, then this step.
        place = both
        if number > 0:
            place = tl.load(dest + both, mask=both < n, other=0).to(tl.int32)
        moves_to = tl.load(to + place, mask=both < n, other=0)
        member = tl.load(gone + index, mask=index < now - left, other=0)
        tl.store(sources + n - now + index, tl.load(origin + member, mask=index < now - left, other=0), mask=index < now - left)
        stays = tl.load(stands + both, mask=both < left, other=0)
        stand_in = tl.load(origin + stays, mask=both < left, other=0)
        tl.debug_barrier()
        tl.store(dest + both, moves_to, mask=both < n)
        tl.store(origin + both, stand_in, mask=both < left)
        if number == ROUNDS - 1:
            tl.store(rep + both, stand_in, mask=both < left)
        else:
            share = tl.where((match[None, :] == index[:, None]) & moved[None, :], s[None, :], 0.0)
            grown = t + tl.sum(share, 1)
            middle = (b * t[:, None] + tl.dot(share, a, input_precision="tf32x3")) / tl.maximum(grown, 1e-12)[:, None]
            new_place = tl.load(to + source, mask=is_source, other=0)
            alone = is_source & (moved == 0)
            tl.store(there + new_place[:, None] * width + column[None, :], a, mask=alone[:, None] & is_channel)
            tl.store(there + (kept + index)[:, None] * width + column[None, :], middle, mask=is_target[:, None] & is_channel)
            tl.store(size_there + new_place, s, mask=alone)
            tl.store(size_there + kept + index, grown, mask=is_target)
            here, there = there, here
            size_here, size_there = size_there, size_here
        tl.debug_barrier()
        now = left

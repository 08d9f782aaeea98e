"""Agglomerative clustering by Ward's criterion: the costs of all pairs by tiles, then one program an image merges."""

from __future__ import annotations

import torch
from torch import Tensor
from triton import jit
from triton import language as tl

from tokenreduce.errors import InvalidValueError
from tokenreduce.ops.triton.class_rows import Weights, weighing, weights_of
from tokenreduce.ops.triton.launching import has_assembly, operator, start
from tokenreduce.ops.triton.pieces import NONE, reciprocal
from tokenreduce.ops.triton.points import mean_points, sketched_points
from tokenreduce.ops.triton.rounding import cdiv, next_power_of_2
from tokenreduce.ops.triton.tensors import empty_maps, in_a_row

TILE = 64  # rows and columns of costs of a program
DEEP = 32  # channels multiplied at once
EACH = 64  # clusters of a warp, while there are at most
WARPS = 16  # of them: more wait longer for one another than they gain
LARGEST = tl.constexpr(3.4028234663852886e38)  # of fp32: what it costs where that is no number
# A key tells of a cluster, from the highest bits on: the least cost of merging it, its place, the place of the other,
# and whether that is out of date. The least key of all is the pair to merge, the first of equals.
PLACES = tl.constexpr(16383)  # bits of a place
GONE = tl.constexpr(2**63 - 1)  # the key of a cluster that is none any more


@operator
def ward_cluster(
    metric: Tensor, sizes: Tensor | None, signs: Tensor | None, width: int, directions: bool, keep: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`dest (B, N)`, `rep (B, M)` and `sources (B, N - M)` of the `keep` clusters of `metric (B, N, C)`, by sketches of
    `width` channels of its `directions`, or as it is: then `(B, H, N, C)` is averaged over heads.

    Raises: InvalidValueError if `keep` is not in 1 to N.
    """
    return cluster_in(None, metric, sizes, signs, width, directions, keep)


def cluster_in(
    warps: int | None,
    metric: Tensor,
    sizes: Tensor | None,
    signs: Tensor | None,
    width: int,
    directions: bool,
    keep: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`ward_cluster` with so many warps for the merges of an image; None: its own choice."""
    check_keep(keep, metric.shape[-2])
    metric = in_a_row(metric)
    if directions:
        points, _, _ = sketched_points(metric, None, signs, width, 1)
    else:
        points = mean_points(metric if metric.ndim == 4 else metric[:, None])
    return cluster_points(points, sizes, keep, warps=warps)


def check_keep(keep: int, n: int) -> None:
    """Raise if the kernel would look for a pair without an end."""
    if not 1 <= keep <= n:
        raise InvalidValueError(f"keep is {keep}; of {n} tokens it must lie in [1, {n}]")


def cluster_points(
    points: Tensor, sizes: Tensor | None, keep: int, weights: Weights | None = None, warps: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The map of `keep` clusters of `points (B, N, d)` in fp32, which weigh their sizes, or by them and `weights`."""
    sizes = None if sizes is None else in_a_row(sizes)
    batch, n, width = points.shape
    tiles = cdiv(n, TILE)
    device = points.device
    between = torch.empty(batch, n, n, dtype=torch.float32, device=device)
    keys = torch.empty(batch, tiles + 1, n, dtype=torch.int64, device=device)
    mass = torch.empty(batch, n, dtype=torch.float32, device=device)
    changed = torch.empty(batch, n, dtype=torch.int32, device=device)
    weighed, constants = weighing(weights, points)
    start(_costs, points)[(tiles, tiles, batch)](
        points, points if sizes is None else sizes, between, keys, mass, changed,
        0 if sizes is None else sizes.stride(0), n, *weighed,
        WIDTH=width, **constants, SIZED=sizes is not None, PRECISE="tf32x3" if has_assembly() else "ieee",
        TILE=TILE, DEEP=min(DEEP, max(16, next_power_of_2(width))),
    )  # fmt: skip
    dest, rep, sources = empty_maps(points, n, keep)
    block = max(32, next_power_of_2(n))
    start(_cluster, points)[(batch,)](
        between, keys, mass, changed, dest, rep, sources, n, keep, tiles + 1,
        ASSEMBLY=has_assembly(), BLOCK=block, num_warps=warps or min(WARPS, max(1, block // EACH)), num_stages=1,
    )  # fmt: skip
    return dest, rep, sources


@jit(do_not_specialize=["stride_sizes", "n", "length", "prefix", "part", "least"])
def _costs(
    points, sizes, between, keys, mass, changed, stride_sizes, n, rows, length, prefix, part, least,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK_ROWS: tl.constexpr, SIZED: tl.constexpr, PRECISE: tl.constexpr,
    TILE: tl.constexpr, DEEP: tl.constexpr,
):  # fmt: skip
    """A tile on or above the diagonal, written there and mirrored: products are not symmetric to the last bit."""
    image, above, right = tl.program_id(2).to(tl.int64), tl.program_id(0), tl.program_id(1)
    if above > right:
        return
    row, column = above * TILE + tl.arange(0, TILE), right * TILE + tl.arange(0, TILE)
    points += image * n * WIDTH
    scores = tl.zeros([TILE, TILE], tl.float32)
    squares, other_squares = tl.zeros([TILE], tl.float32), tl.zeros([TILE], tl.float32)
    for channel in range(0, WIDTH, DEEP):
        a = _part(points, row, channel, n, WIDTH, DEEP)
        b = _part(points, column, channel, n, WIDTH, DEEP)
        scores = tl.dot(a, tl.trans(b), scores, input_precision=PRECISE)
        squares += tl.sum(a * a, 1)
        other_squares += tl.sum(b * b, 1)
    size, other_size = tl.full([TILE], 1.0, tl.float32), tl.full([TILE], 1.0, tl.float32)
    if SIZED:
        size = tl.load(sizes + image * stride_sizes + row, mask=row < n, other=1.0)
        other_size = tl.load(sizes + image * stride_sizes + column, mask=column < n, other=1.0)
    if ROWS > 0:
        rows += image * ROWS * length + prefix
        size = weights_of(size, rows, row, n, length, part, least, ROWS, BLOCK_ROWS)
        other_size = weights_of(other_size, rows, column, n, length, part, least, ROWS, BLOCK_ROWS)
    inverse = 1 / size[:, None] + 1 / other_size[None, :]
    cost = _cleaned((squares[:, None] + other_squares[None, :] - 2 * scores) / inverse)
    between += image * n * n
    pair = (row[:, None] < column[None, :]) & (column < n)[None, :]
    tl.store(between + row[:, None] * n + column[None, :], cost, mask=pair)
    tl.store(between + column[None, :] * n + row[:, None], cost, mask=pair)
    # Each tile that a row takes part in has a place for the least of it; that on the diagonal has two.
    keys += image * (tl.num_programs(0) + 1) * n
    cost = tl.where(pair, cost, float("inf"))
    least, other_least = tl.min(cost, 1), tl.min(cost, 0)
    nearest = tl.min(tl.where(cost == least[:, None], column[None, :], NONE), 1)
    other_nearest = tl.min(tl.where(cost == other_least[None, :], row[:, None], NONE), 0)
    key = tl.where(least <= LARGEST, _key(least, row, nearest), GONE)
    other_key = tl.where(other_least <= LARGEST, _key(other_least, column, other_nearest), GONE)
    tl.store(keys + (right + 1) * n + row, key, mask=row < n)
    tl.store(keys + above * n + column, other_key, mask=column < n)
    if above == right:
        tl.store(mass + image * n + row, size, mask=row < n)
        tl.store(changed + image * n + row, tl.zeros([TILE], tl.int32), mask=row < n)


@jit(do_not_specialize=["n", "keep", "parts"])
def _cluster(
    between, keys, mass, changed, dest, rep, sources, n, keep, parts, ASSEMBLY: tl.constexpr, BLOCK: tl.constexpr
):
    """What merging costs a cluster only grows as others merge (Ward's criterion is reducible), so a key that is out of
    date is a bound, and is found again only where it would be the least. Its update takes rounding into account."""
    image = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, BLOCK)
    between += image * n * n
    keys += image * parts * n
    mass += image * n
    changed += image * n
    dest += image * n
    when = tl.zeros([BLOCK], tl.int32)
    size = tl.load(mass + index, mask=index < n, other=1.0)
    key = tl.full([BLOCK], GONE, tl.int64)
    for part in range(parts):
        key = tl.minimum(key, tl.load(keys + part * n + index, mask=index < n, other=GONE))
    end = tl.full([BLOCK], GONE, tl.int64)  # the merge that ended each
    best = tl.min(key, 0)
    for number in range(1, n - keep + 1):
        best, key = _fresh(best, key, between, changed, when, index, n)
        end = tl.where(index == ((best >> 1) & PLACES).to(tl.int32), best, end)
        best, key, when, size = _merge(best, key, when, size, number, between, mass, changed, index, n, ASSEMBLY)
    tl.store(dest + index, tl.where(end != GONE, (end >> 16) & PLACES, index), mask=index < n)
    _write(dest, rep + image * keep, sources + image * (n - keep), index, n, BLOCK)


@jit
def _fresh(best, key, between, changed, when, index, n):
    """The least key, up to date."""
    while best & 1 != 0:
        row = ((best >> 16) & PLACES).to(tl.int32)
        others = (key != GONE) & (index != row)
        cost = _row(between, when, index, others, row, tl.load(changed + row), n)
        best, key = _with(key, _key(cost, row, index), others, index == row)
    return best, key


@jit
def _merge(best, key, when, size, number, between, mass, changed, index, n, ASSEMBLY: tl.constexpr):
    """Merge the pair of the least key. Finding a least key waits for all threads, which is most of the time: so that of
    the others is found beside that of the one cluster whose key is still to come."""
    into, gone = ((best >> 16) & PLACES).to(tl.int32), ((best >> 1) & PLACES).to(tl.int32)
    others = (key != GONE) & (index != into) & (index != gone)
    into_changed, gone_changed = tl.load(changed + into), tl.load(changed + gone)
    a, b = tl.load(mass + into), tl.load(mass + gone)
    x = _row(between, when, index, others, into, into_changed, n)
    y = _row(between, when, index, others, gone, gone_changed, n)
    z = (best >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    cost = _times(a + size, x, ASSEMBLY) + _times(b + size, y, ASSEMBLY) - _times(size, z, ASSEMBLY)
    cost = _cleaned(_quotient(cost, tl.maximum(a + b + size, 1e-12), ASSEMBLY))
    theirs = _key(cost, index, into)
    nearest = ((key >> 1) & PLACES).to(tl.int32)
    outdated = ((nearest == into) | (nearest == gone)) & (theirs > key)
    key = tl.where(others, tl.where(outdated, key | 1, tl.minimum(key, theirs)), GONE)
    best, key = _with(key, _key(cost, into, index), others, index == into)
    # All threads have read what is overwritten now: the least key is known to none before all have given theirs.
    tl.store(between + into * n + index, cost, mask=others)
    tl.store(mass + into, a + b)
    tl.store(changed + into, number)
    tl.debug_barrier()
    return best, key, tl.where(index == into, number, when), tl.where(index == into, a + b, size)


@jit
def _with(key, candidates, others, own):
    """The least key of all, and the keys with the least candidate for the `own` cluster."""
    found = tl.min(tl.where(others, candidates, GONE), 0)
    rest = tl.min(tl.where(own, GONE, key), 0)
    return tl.minimum(found, rest), tl.where(own, found, key)


@jit
def _times(a, b, ASSEMBLY: tl.constexpr):
    """`a * b`, rounded before anything is added to it, as the reference has it: equal costs stay equal."""
    if ASSEMBLY:
        return tl.inline_asm_elementwise("mul.rn.f32 $0, $1, $2;", "=f,f,f", [a, b], tl.float32, True, 1)
    return a * b


@jit
def _quotient(a, b, ASSEMBLY: tl.constexpr):
    """`a / b`, rounded as the reference has it, without the branch for numbers near the ends of fp32."""
    if ASSEMBLY:
        near = reciprocal(b, True)
        near = tl.fma(tl.fma(-b, near, 1.0), near, near)
        quotient = a * near
        quotient = tl.fma(tl.fma(-b, quotient, a), near, quotient)
        return tl.fma(tl.fma(-b, quotient, a), near, quotient)
    return a / b


@jit
def _row(between, when, index, others, row, changed, n):
    """What merging `row`, which `changed` last by that merge, with each of `others` costs. A merge writes its row
    alone, not its column: of two clusters the row of the one that changed last is right."""
    newer = when > changed
    return tl.load(between + tl.where(newer, index * n + row, row * n + index), mask=others, other=0.0)


@jit
def _write(dest, rep, sources, index, n, BLOCK: tl.constexpr):
    """The map, of what each one has become part of in `dest`, which may have become part of another."""
    tl.debug_barrier()
    parent = tl.load(dest + index, mask=index < n, other=BLOCK)
    stands, gone = parent == index, parent < index
    further = tl.load(dest + parent, mask=gone, other=BLOCK)
    while tl.sum((gone & (further < parent)).to(tl.int32), 0) > 0:
        parent = tl.where(gone, further, parent)
        further = tl.load(dest + parent, mask=gone, other=BLOCK)
    place = tl.cumsum(stands.to(tl.int32), 0) - 1
    tl.debug_barrier()
    tl.store(dest + index, place, mask=stands)
    tl.store(rep + place, index, mask=stands)
    tl.store(sources + tl.cumsum(gone.to(tl.int32), 0) - 1, index, mask=gone)
    tl.debug_barrier()
    tl.store(dest + index, tl.load(dest + parent, mask=gone, other=0), mask=gone)


@jit
def _part(points, token, channel, n, WIDTH: tl.constexpr, DEEP: tl.constexpr):
    column = channel + tl.arange(0, DEEP)
    inside = (token < n)[:, None] & (column < WIDTH)[None, :]
    return tl.load(points + token[:, None] * WIDTH + column[None, :], mask=inside, other=0.0)


@jit
def _cleaned(cost):
    """Numbers from 0 on, whose bits are in their order."""
    return tl.where(cost <= LARGEST, tl.maximum(cost, 0.0) + 0.0, LARGEST)


@jit
def _key(cost, place, other):
    bits = cost.to(tl.int32, bitcast=True).to(tl.int64)
    return (bits << 32) | (place << 16) | (other << 1)

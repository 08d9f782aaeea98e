"""What tokens are compared by: means over heads, unit rows, and sketches of them."""

from __future__ import annotations

import torch
from torch import Tensor
from triton import jit
from triton import language as tl

from tokenreduce.ops.triton.launching import start
from tokenreduce.ops.triton.pieces import mean_rows, unit_rows
from tokenreduce.ops.triton.rounding import next_power_of_2

CELLS = 4096  # numbers of a tile
FEW = 16384  # tokens that leave processors free


def unit_points(metric: Tensor) -> tuple[Tensor, Tensor]:
    """`(B, N, d)` in fp32: unit rows of the mean over heads of `metric (B, H, N, d)`, of last stride 1; and zeros
    `(B, 1)` for `match_points`."""
    return _points_of(metric, True)


def mean_points(metric: Tensor) -> Tensor:
    """`(B, N, d)` in fp32: the mean over heads of `metric (B, H, N, d)`, of last stride 1."""
    return _points_of(metric, False)[0]


def _points_of(metric: Tensor, unit: bool) -> tuple[Tensor, Tensor]:
    batch, heads, n, width = metric.shape
    out = torch.empty(batch, n, width, dtype=torch.float32, device=metric.device)
    tickets = torch.empty(batch, 1, dtype=torch.int32, device=metric.device)
    block_d = next_power_of_2(width)
    rows = max(1, min(64 if batch * n > FEW else 16, CELLS // block_d))
    start(_mean, metric)[(-(-n // rows), batch)](
        metric, out, tickets, *metric.stride()[:3], n, WIDTH=width, HEADS=heads, UNIT=unit, ROWS=rows, BLOCK_D=block_d
    )
    return out, tickets


@jit(do_not_specialize=["n"])
def _mean(
    metric, out, tickets, stride_image, stride_head, stride_token, n,
    WIDTH: tl.constexpr, HEADS: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    token, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK_D)
    inside = (token < n)[:, None] & (column < WIDTH)[None, :]
    at = token[:, None].to(tl.int64) * stride_token + column[None, :]
    mean = mean_rows(metric + image * stride_image, stride_head, at, inside, HEADS)
    if UNIT:
        mean = unit_rows(mean)
    tl.store(out + (image * n + token[:, None]) * WIDTH + column[None, :], mean, mask=inside)
    if tl.program_id(0) == 0:
        tl.store(tickets + image, 0)


def sketched_points(
    x: Tensor, sizes: Tensor | None, signs: Tensor | None, width: int, rounds: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sketches in fp32 `(B, N, width)` of the directions of `x (B, N, C)`, of last stride 1: channel c is added up with
    its sign in place c modulo width. Also their sizes `(B, N)`, and zeros `(B, rounds)` for `match_points`."""
    batch, n, channels = x.shape
    out = torch.empty(batch, n, width, dtype=torch.float32, device=x.device)
    mass = torch.empty(batch, n, dtype=torch.float32, device=x.device)
    tickets = torch.empty(batch, rounds, dtype=torch.int32, device=x.device)
    block = next_power_of_2(width)
    rows = max(1, min(32 if batch * n > FEW else 8, CELLS // block))
    start(_sketch, x)[(-(-n // rows), batch)](
        x, x if sizes is None else sizes, x if signs is None else signs, out, mass, tickets,
        x.stride(0), x.stride(1), 0 if sizes is None else sizes.stride(0), n,
        CHANNELS=channels, WIDTH=width, SIZED=sizes is not None, SIGNED=signs is not None, ROUNDS=rounds,
        ROWS=rows, BLOCK_D=block,
    )  # fmt: skip
    return out, mass, tickets


@jit(do_not_specialize=["n", "stride_sizes"])
def _sketch(
    x, sizes, signs, out, mass, tickets, stride_image, stride_token, stride_sizes, n,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, SIZED: tl.constexpr, SIGNED: tl.constexpr,
    ROUNDS: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    token, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK_D)
    is_token = token < n
    rows = x + image * stride_image + token[:, None].to(tl.int64) * stride_token
    total = tl.zeros([ROWS, BLOCK_D], tl.float32)
    squares = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for group in range(0, CHANNELS, WIDTH):
        channel = group + column
        is_channel = (column < WIDTH) & (channel < CHANNELS)
        part = tl.load(rows + channel[None, :], mask=is_token[:, None] & is_channel[None, :], other=0.0)
        part = part.to(tl.float32)
        squares += part * part
        if SIGNED:
            part *= tl.load(signs + channel, mask=is_channel, other=0.0)[None, :]
        total += part
    length = tl.maximum(tl.sqrt(tl.sum(squares, 1)), 1e-6)
    at = (image * n + token[:, None]) * WIDTH + column[None, :]
    tl.store(out + at, total / length[:, None], mask=is_token[:, None] & (column < WIDTH)[None, :])
    if SIZED:
        tl.store(mass + image * n + token, tl.load(sizes + image * stride_sizes + token, mask=is_token), mask=is_token)
    else:
        tl.store(mass + image * n + token, tl.full([ROWS], 1.0, tl.float32), mask=is_token)
    if tl.program_id(0) == 0:
        for number in tl.static_range(ROUNDS):
            tl.store(tickets + image * ROUNDS + number, 0)

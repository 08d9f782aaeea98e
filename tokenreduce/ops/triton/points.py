"""What tokens are compared by: means over heads, unit rows, and sketches of them."""

from __future__ import annotations

import torch
from torch import Tensor
from triton import jit
from triton import language as tl

from tokenreduce.ops.triton.class_rows import Rows, write_row
from tokenreduce.ops.triton.launching import start
from tokenreduce.ops.triton.pieces import mean_rows, unit_rows
from tokenreduce.ops.triton.rounding import cdiv, next_power_of_2

CELLS = 4096  # numbers of a tile
FEW = 16384  # tokens that leave processors free


def unit_points(metric: Tensor) -> tuple[Tensor, Tensor]:
    """`(B, N, d)` in fp32: unit rows of the mean over heads of `metric (B, H, N, d)`, of last stride 1; and zeros
    `(B, 1)` for `match_points`."""
    return _points_of(metric, True)


def mean_points(metric: Tensor, rows: Rows | None = None) -> Tensor:
    """`(B, N, d)` in fp32: the mean over heads of `metric (B, H, N, d)`, of last stride 1. The same launch writes
    `rows`."""
    return _points_of(metric, False, rows)[0]


def _points_of(metric: Tensor, unit: bool, rows: Rows | None = None) -> tuple[Tensor, Tensor]:
    batch, heads, n, width = metric.shape
    out = torch.empty(batch, n, width, dtype=torch.float32, device=metric.device)
    tickets = torch.empty(batch, 1, dtype=torch.int32, device=metric.device)
    block_d = next_power_of_2(width)
    tokens = max(1, min(64 if batch * n > FEW else 16, CELLS // block_d))
    given = (metric, out, tickets, *metric.stride()[:3], n)
    constants = {"WIDTH": width, "HEADS": heads, "UNIT": unit, "ROWS": tokens, "BLOCK_D": block_d}
    tiles = cdiv(n, tokens)
    if rows is None:
        start(_mean, metric)[(tiles, batch)](*given, **constants)
    else:
        start(_mean_and_rows, metric)[(rows.count + tiles, batch)](*given, *rows.given, **constants, **rows.constants)
    return out, tickets


@jit(do_not_specialize=["n"])
def _mean(
    metric, out, tickets, stride_image, stride_head, stride_token, n,
    WIDTH: tl.constexpr, HEADS: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    _mean_tile(
        metric, out, tickets, tl.program_id(0), stride_image, stride_head, stride_token, n,
        WIDTH, HEADS, UNIT, ROWS, BLOCK_D,
    )  # fmt: skip


@jit(do_not_specialize=["n", "total", "class_tokens", "stride_bias", "scale", "count"])
def _mean_and_rows(
    metric, out, tickets, stride_image, stride_head, stride_token, n,
    queries, keys, bias, rows, query_image, query_head, query_token, key_image, key_head, key_token,
    stride_bias, bias_token, total, class_tokens, scale, count,
    WIDTH: tl.constexpr, HEADS: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
    HEAD: tl.constexpr, BIASED: tl.constexpr, KEYS: tl.constexpr, BLOCK_HEAD: tl.constexpr,
):  # fmt: skip
    """The first programs write the rows, which takes longest."""
    if tl.program_id(0) < count:
        write_row(
            queries, keys, bias, rows, query_image, query_head, query_token, key_image, key_head, key_token,
            stride_bias, bias_token, total, class_tokens, scale, count, HEAD, BIASED, KEYS, BLOCK_HEAD,
        )  # fmt: skip
    else:
        _mean_tile(
            metric, out, tickets, tl.program_id(0) - count, stride_image, stride_head, stride_token, n,
            WIDTH, HEADS, UNIT, ROWS, BLOCK_D,
        )  # fmt: skip


@jit
def _mean_tile(
    metric, out, tickets, tile, stride_image, stride_head, stride_token, n,
    WIDTH: tl.constexpr, HEADS: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    token, column = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK_D)
    inside = (token < n)[:, None] & (column < WIDTH)[None, :]
    at = token[:, None].to(tl.int64) * stride_token + column[None, :]
    mean = mean_rows(metric + image * stride_image, stride_head, at, inside, HEADS)
    if UNIT:
        mean = unit_rows(mean)
    tl.store(out + (image * n + token[:, None]) * WIDTH + column[None, :], mean, mask=inside)
    if tile == 0:
        tl.store(tickets + image, 0)


def sketched_points(
    x: Tensor, sizes: Tensor | None, signs: Tensor | None, width: int, rounds: int, rows: Rows | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Sketches in fp32 `(B, N, width)` of the directions of `x (B, N, C)`, of last stride 1: channel c is added up with
    its sign in place c modulo width. Also their sizes `(B, N)`, and zeros `(B, rounds)` for `match_points`. The same
    launch writes `rows`."""
    batch, n, channels = x.shape
    out = torch.empty(batch, n, width, dtype=torch.float32, device=x.device)
    mass = torch.empty(batch, n, dtype=torch.float32, device=x.device)
    tickets = torch.empty(batch, rounds, dtype=torch.int32, device=x.device)
    block = next_power_of_2(width)
    tokens = max(1, min(32 if batch * n > FEW else 8, CELLS // block))
    given = (
        x, x if sizes is None else sizes, x if signs is None else signs, out, mass, tickets,
        x.stride(0), x.stride(1), 0 if sizes is None else sizes.stride(0), n,
    )  # fmt: skip
    constants = {
        "CHANNELS": channels, "WIDTH": width, "SIZED": sizes is not None, "SIGNED": signs is not None,
        "ROUNDS": rounds, "ROWS": tokens, "BLOCK_D": block,
    }  # fmt: skip
    tiles = cdiv(n, tokens)
    if rows is None:
        start(_sketch, x)[(tiles, batch)](*given, **constants)
    else:
        start(_sketch_and_rows, x)[(rows.count + tiles, batch)](*given, *rows.given, **constants, **rows.constants)
    return out, mass, tickets


@jit(do_not_specialize=["n", "stride_sizes"])
def _sketch(
    x, sizes, signs, out, mass, tickets, stride_image, stride_token, stride_sizes, n,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, SIZED: tl.constexpr, SIGNED: tl.constexpr,
    ROUNDS: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    _sketch_tile(
        x, sizes, signs, out, mass, tickets, tl.program_id(0), stride_image, stride_token, stride_sizes, n,
        CHANNELS, WIDTH, SIZED, SIGNED, ROUNDS, ROWS, BLOCK_D,
    )  # fmt: skip


@jit(do_not_specialize=["n", "stride_sizes", "total", "class_tokens", "stride_bias", "scale", "count"])
def _sketch_and_rows(
    x, sizes, signs, out, mass, tickets, stride_image, stride_token, stride_sizes, n,
    queries, keys, bias, rows, query_image, query_head, query_token, key_image, key_head, key_token,
    stride_bias, bias_token, total, class_tokens, scale, count,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, SIZED: tl.constexpr, SIGNED: tl.constexpr,
    ROUNDS: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
    HEAD: tl.constexpr, BIASED: tl.constexpr, KEYS: tl.constexpr, BLOCK_HEAD: tl.constexpr,
):  # fmt: skip
    """The first programs write the rows, which takes longest."""
    if tl.program_id(0) < count:
        write_row(
            queries, keys, bias, rows, query_image, query_head, query_token, key_image, key_head, key_token,
            stride_bias, bias_token, total, class_tokens, scale, count, HEAD, BIASED, KEYS, BLOCK_HEAD,
        )  # fmt: skip
    else:
        _sketch_tile(
            x, sizes, signs, out, mass, tickets, tl.program_id(0) - count, stride_image, stride_token, stride_sizes, n,
            CHANNELS, WIDTH, SIZED, SIGNED, ROUNDS, ROWS, BLOCK_D,
        )  # fmt: skip


@jit
def _sketch_tile(
    x, sizes, signs, out, mass, tickets, tile, stride_image, stride_token, stride_sizes, n,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, SIZED: tl.constexpr, SIGNED: tl.constexpr,
    ROUNDS: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    token, column = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK_D)
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
    if tile == 0:
        for number in tl.static_range(ROUNDS):
            tl.store(tickets + image * ROUNDS + number, 0)

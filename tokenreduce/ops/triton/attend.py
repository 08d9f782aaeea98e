"""Attention whose keys have sizes: one launch, and the logarithms of the sizes never leave fp32."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor
from triton import language as tl

from tokenreduce.ops.triton.launching import has_assembly, operator, start
from tokenreduce.ops.triton.rounding import cdiv, next_power_of_2

LOG2_E = tl.constexpr(1.4426950408889634)
PACK = 8  # elements of half precision in 16 bytes
STRIDES = ["q_b", "q_h", "q_n", "k_b", "k_h", "k_n", "v_b", "v_h", "v_n", "logs_b", "logs_n"]


@triton.jit
def _load_rows(base, begin, n, stride, ROWS: tl.constexpr, WIDE: tl.constexpr, D: tl.constexpr, PACK: tl.constexpr,
               CUT: tl.constexpr, FAR: tl.constexpr):  # fmt: skip
    """`ROWS` rows from `begin` on, all there unless `CUT`, which repeats the last of `n`: a mask would make the copies
    wait. Channels that are not there are 0."""
    if CUT:
        rows = tl.minimum(begin + tl.arange(0, ROWS), n - 1)
        place = base + (rows.to(tl.int64) if FAR else rows)[:, None] * (stride * PACK)
    else:
        first = base + (tl.cast(begin, tl.int64) if FAR else begin) * stride * PACK
        place = first + tl.arange(0, ROWS)[:, None] * (stride * PACK)
    place += tl.arange(0, WIDE)[None, :]
    if WIDE > D:
        return tl.load(place, mask=tl.arange(0, WIDE)[None, :] < D, other=0.0)
    return tl.load(place)


@triton.jit
def _load_bias(logs, begin, fresh, n, stride, ROWS: tl.constexpr, FAR: tl.constexpr):
    """Binary logarithms of sizes, -inf before `fresh` and from `n` on. Each thread would load all that it needs itself
    if they were fewer than threads, or loaded for the tile at hand: so several times, and a tile ahead."""
    TIMES: tl.constexpr = max(1, 128 // ROWS)
    rows = begin + tl.arange(0, ROWS)
    rows = tl.broadcast_to(rows[None, :], [TIMES, ROWS])
    place = logs + (rows.to(tl.int64) if FAR else rows) * stride
    bias = tl.load(place, mask=(rows >= fresh) & (rows < n), other=float("-inf")) * LOG2_E
    return tl.max(bias, 0)


@triton.jit
def _softmax(logits, best, total, dtype: tl.constexpr):
    """The online softmax after more logits: weights, what earlier ones shrink by, and the two running numbers."""
    larger = tl.maximum(best, tl.max(logits, 1))
    anchor = tl.where(larger == float("-inf"), 0.0, larger)  # all keys so far have size 0
    weights = tl.exp2(logits - anchor[:, None])
    shrink = tl.exp2(best - anchor)
    return weights.to(dtype), shrink, larger, total * shrink + tl.sum(weights, 1)


@triton.jit
def _settled(x, WAIT: tl.constexpr):
    """`x` once it is known, by an instruction of nothing: a product still under way when a loop goes around makes the
    assembler wait after each of its parts."""
    if WAIT:
        return tl.inline_asm_elementwise("", "=f,0", [x], tl.float32, True, 1)
    return x


@triton.jit
def _step(
    q, best, total, acc, k, v, bias, k_n, v_n, begin, n, scale,
    ROWS: tl.constexpr, WIDE: tl.constexpr, D: tl.constexpr, PACK: tl.constexpr, REPEAT: tl.constexpr,
    FAR: tl.constexpr, PRECISION: tl.constexpr, WAIT: tl.constexpr,
):  # fmt: skip
    """The online softmax after the keys of one tile."""
    keys = _load_rows(k, begin, n, k_n, ROWS, WIDE, D, PACK, REPEAT, FAR)
    logits = tl.dot(q, tl.trans(keys), input_precision=PRECISION) * scale + bias[None, :]
    weights, shrink, best, total = _softmax(logits, best, total, v.dtype.element_ty)
    values = _load_rows(v, begin, n, v_n, ROWS, WIDE, D, PACK, REPEAT, FAR)
    acc = tl.dot(weights, values, acc * shrink[:, None], input_precision=PRECISION)
    return best, total, _settled(acc, WAIT)


@triton.jit(do_not_specialize=[*STRIDES[:-1], "heads", "queries", "n", "scale"])
def _attend(
    q, k, v, logs, out,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, logs_b, logs_n,
    heads, queries, n, scale,
    D: tl.constexpr, WIDE: tl.constexpr, PACK: tl.constexpr, FAR: tl.constexpr, PRECISION: tl.constexpr,
    SHORT: tl.constexpr, WAIT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """`BM` queries of one head of one image: keys in tiles of `BN`, the others in tiles of `LAST`, the last of which
    begins early to be full. `SHORT`: there are fewer than `LAST`. Strides are in `PACK` elements, which makes loads
    of 16 bytes; `FAR`: rows of a head may lie 2^31 elements apart. Programs next to each other have one image's heads,
    whose rows lie next to each other in what one projection writes."""
    tiles = tl.cdiv(queries, BM)
    head = (tl.program_id(0) % heads).to(tl.int64)
    image = tl.program_id(0) // heads
    row = image % tiles * BM
    image = (image // tiles).to(tl.int64)
    q += (image * q_b + head * q_h) * PACK
    k += (image * k_b + head * k_h) * PACK
    v += (image * v_b + head * v_h) * PACK
    logs += image * logs_b
    scale = tl.cast(scale, tl.float32) * LOG2_E  # compilers pass it in fp64
    mine = _load_rows(q, row, queries, q_n, BM, WIDE, D, PACK, True, FAR)
    best = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, WIDE], tl.float32)
    whole = n // BN * BN if LAST < BN else 0
    if LAST < BN:
        bias = _load_bias(logs, 0, 0, n, logs_n, BN, FAR)
        for begin in range(0, whole, BN):
            following = _load_bias(logs, begin + BN, 0, n, logs_n, BN, FAR)
            best, total, acc = _step(
                mine, best, total, acc, k, v, bias, k_n, v_n, begin, n, scale,
                BN, WIDE, D, PACK, False, FAR, PRECISION, WAIT,
            )  # fmt: skip
            bias = following
    last = n if SHORT else n - LAST  # where the last window begins
    bias = _load_bias(logs, tl.minimum(whole, last), whole, n, logs_n, LAST, FAR)
    for fresh in range(whole, n, LAST):
        following = _load_bias(logs, tl.minimum(fresh + LAST, last), fresh + LAST, n, logs_n, LAST, FAR)
        best, total, acc = _step(
            mine, best, total, acc, k, v, bias, k_n, v_n, tl.minimum(fresh, last), n, scale,
            LAST, WIDE, D, PACK, SHORT, FAR, PRECISION, WAIT,
        )  # fmt: skip
        bias = following
    acc *= (1 / tl.where(total == 0, 1.0, total))[:, None]  # 0 where there is no key
    out += (image * queries + row) * (heads * D) + head * D
    place = out + tl.arange(0, BM)[:, None] * (heads * D) + tl.arange(0, WIDE)[None, :]
    there = (tl.arange(0, BM)[:, None] < queries - row) & (tl.arange(0, WIDE)[None, :] < D)
    tl.store(place, acc.to(out.dtype.element_ty), mask=there)


class Tiles(NamedTuple):
    """How a launch is cut."""

    queries: int  # a program
    keys: int  # at once
    last: int  # keys at once of those that fill no tile; as `keys` for all
    warps: int
    stages: int  # tiles of keys and values under way


def tiles(n: int, d: int, dtype: torch.dtype) -> Tiles:
    """For `n` keys and heads of `d` channels."""
    if dtype == torch.float32:
        return Tiles(32, 32, 32, 4, 2)
    if d > 64:
        return Tiles(64, 64, 64, 4, 2)
    return Tiles(64, 128, 128, 4, 2)


@operator
def attend(q: Tensor, k: Tensor, v: Tensor, logs: Tensor, scale: float) -> Tensor:
    """`softmax(q k^T scale + logs) v`.

    Args:
        q: `(B, H, Nq, d)`, any strides but 1 in the last axis; d at most 128.
        k, v: `(B, H, N, d)`, likewise, of the same type.
        logs: `(B or 1, 1, 1, N)`, natural logarithms of sizes in fp32. Keys of -inf get nothing; queries that only have
            such keys get 0.

    Returns:
        `(B, H, Nq, d)`, a view of `(B, Nq, H, d)` in one piece.
    """
    return attend_in(tiles(k.shape[2], k.shape[3], k.dtype), q, k, v, logs, scale)


def attend_in(cut: Tiles, q: Tensor, k: Tensor, v: Tensor, logs: Tensor, scale: float) -> Tensor:
    """`attend` cut into these tiles."""
    batch, heads, queries, d = q.shape
    out = q.new_empty(batch, queries, heads, d)
    strides = [stride for t in (q, k, v) for stride in t.stride()[:3]]
    pack = PACK if all(stride % PACK == 0 for stride in strides) else 1
    far = any(t.shape[2] * t.stride(2) >= 2**31 for t in (q, k, v)) or k.shape[2] * logs.stride(3) >= 2**31
    of_logs = (logs.stride(0) if logs.shape[0] > 1 else 0, logs.stride(3))
    wide = max(16, next_power_of_2(d))
    grid = (batch * heads * cdiv(queries, cut.queries),)
    start(_attend, q)[grid](
        q, k, v, logs, out, *(stride // pack for stride in strides), *of_logs, heads, queries, k.shape[2], scale,
        D=d, WIDE=wide, PACK=pack, FAR=far, SHORT=k.shape[2] < cut.last, WAIT=has_assembly(),
        PRECISION="tf32x3" if q.dtype == torch.float32 else "tf32",
        BM=cut.queries, BN=cut.keys, LAST=cut.last, num_warps=cut.warps, num_stages=cut.stages,
    )  # fmt: skip
    return out.transpose(1, 2)

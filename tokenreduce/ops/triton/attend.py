"""Attention whose keys have sizes: one launch, and the logarithms of the sizes never leave fp32."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor
from triton import language as tl

from tokenreduce.ops.triton.launching import operator, start

LOG2_E = tl.constexpr(1.4426950408889634)
PACK = 8  # elements of half precision in 16 bytes
STRIDES = ["q_b", "q_h", "q_n", "k_b", "k_h", "k_n", "v_b", "v_h", "v_n", "logs_b", "logs_n"]


@triton.jit
def _rows(base, start, stride, ROWS: tl.constexpr, WIDE: tl.constexpr, PACK: tl.constexpr, FAR: tl.constexpr):
    """Pointers to `ROWS` rows from `start` on."""
    first = base + (tl.cast(start, tl.int64) if FAR else start) * stride * PACK
    return first + tl.arange(0, ROWS)[:, None] * (stride * PACK) + tl.arange(0, WIDE)[None, :]


@triton.jit
def _load(pointers, left, ROWS: tl.constexpr, WIDE: tl.constexpr, D: tl.constexpr, MASKED: tl.constexpr):
    """Rows and channels that are not there are 0; `left` rows are, if `MASKED`."""
    there = tl.arange(0, WIDE)[None, :] < D
    if MASKED:
        there = there & (tl.arange(0, ROWS)[:, None] < left)
    if MASKED or WIDE > D:
        return tl.load(pointers, mask=there, other=0.0)
    return tl.load(pointers)


@triton.jit
def _load_logs(logs, stride, left, ROWS: tl.constexpr, MASKED: tl.constexpr):
    place = logs + tl.arange(0, ROWS) * stride
    if MASKED:
        return tl.load(place, mask=tl.arange(0, ROWS) < left, other=float("-inf"))
    return tl.load(place)


@triton.jit
def _step(
    q, best, total, acc, k, v, logs, k_n, v_n, logs_n, begin, n, scale,
    ROWS: tl.constexpr, WIDE: tl.constexpr, D: tl.constexpr, PACK: tl.constexpr, MASKED: tl.constexpr,
    FAR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The online softmax after `ROWS` keys more, of which those from `n` on are not there."""
    keys = _load(_rows(k, begin, k_n, ROWS, WIDE, PACK, FAR), n - begin, ROWS, WIDE, D, MASKED)
    place = logs + (tl.cast(begin, tl.int64) if FAR else begin) * logs_n
    added = _load_logs(place, logs_n, n - begin, ROWS, MASKED) * LOG2_E
    logits = tl.dot(q, tl.trans(keys), input_precision=PRECISION) * scale + added[None, :]
    larger = tl.maximum(best, tl.max(logits, 1))
    anchor = tl.where(larger == float("-inf"), 0.0, larger)  # all keys so far have size 0
    weights = tl.exp2(logits - anchor[:, None])
    shrink = tl.exp2(best - anchor)
    values = _load(_rows(v, begin, v_n, ROWS, WIDE, PACK, FAR), n - begin, ROWS, WIDE, D, MASKED)
    acc = tl.dot(weights.to(values.dtype), values, acc * shrink[:, None], input_precision=PRECISION)
    return larger, total * shrink + tl.sum(weights, 1), acc


@triton.jit(do_not_specialize=[*STRIDES[:-1], "heads", "queries", "n", "scale"])
def _attend(
    q, k, v, logs, out,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, logs_b, logs_n,
    heads, queries, n, scale,
    D: tl.constexpr, WIDE: tl.constexpr, PACK: tl.constexpr, FAR: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """`BM` queries of one head of one image: keys in tiles of `BN`, the last ones in masked tiles of `LAST`; all tiles
    are masked if `LAST` is `BN`. Strides are in `PACK` elements, which makes loads of 16 bytes; `FAR`: rows of a head
    may lie 2^31 elements apart."""
    tiles = tl.cdiv(queries, BM)
    head = tl.program_id(0) // tiles
    row = tl.program_id(0) % tiles * BM
    image = (head // heads).to(tl.int64)
    head = (head % heads).to(tl.int64)
    q += (image * q_b + head * q_h) * PACK
    k += (image * k_b + head * k_h) * PACK
    v += (image * v_b + head * v_h) * PACK
    logs += image * logs_b
    scale *= LOG2_E
    mine = _load(_rows(q, row, q_n, BM, WIDE, PACK, FAR), queries - row, BM, WIDE, D, True)
    best = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, WIDE], tl.float32)
    whole = n // BN * BN if LAST < BN else 0
    for begin in range(0, whole, BN):
        best, total, acc = _step(
            mine, best, total, acc, k, v, logs, k_n, v_n, logs_n, begin, n, scale,
            BN, WIDE, D, PACK, False, FAR, PRECISION,
        )  # fmt: skip
    for begin in range(whole, n, LAST):
        best, total, acc = _step(
            mine, best, total, acc, k, v, logs, k_n, v_n, logs_n, begin, n, scale,
            LAST, WIDE, D, PACK, True, FAR, PRECISION,
        )  # fmt: skip
    acc = acc / tl.where(total == 0, 1.0, total)[:, None]  # 0 where there is no key
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
    return Tiles(128, 64, 32, 8, 3) if d <= 64 else Tiles(128, 64, 64, 8, 2)


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
    start(_attend, q)[(batch * heads * triton.cdiv(queries, cut.queries),)](
        q, k, v, logs, out, *(stride // pack for stride in strides), *of_logs, heads, queries, k.shape[2], scale,
        D=d, WIDE=max(16, triton.next_power_of_2(d)), PACK=pack, FAR=far,
        PRECISION="tf32x3" if q.dtype == torch.float32 else "tf32",
        BM=cut.queries, BN=cut.keys, LAST=cut.last, num_warps=cut.warps, num_stages=cut.stages,
    )  # fmt: skip
    return out.transpose(1, 2)

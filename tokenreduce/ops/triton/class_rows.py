"""Attention of class tokens: a row for each of them and each head, and what tokens weigh by the rows' mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton import jit
from triton import language as tl

from tokenreduce.ops.triton.launching import operator, start
from tokenreduce.ops.triton.rounding import next_power_of_2
from tokenreduce.ops.triton.tensors import in_a_row

LOG2_E = tl.constexpr(1.4426950408889634)
KEYS = 128  # keys of a tile


@dataclass(frozen=True)
class Rows:
    """Rows `(B, heads * class tokens, N)` in fp32 that a launch is to write, a program each, and what it takes."""

    rows: Tensor
    given: tuple[Any, ...]
    constants: dict[str, Any]

    @classmethod
    def of(cls, queries: Tensor, keys: Tensor, bias: Tensor | None, class_tokens: int) -> Rows:
        """Those of the first `class_tokens` of `queries (B, H, N, d)`; `bias (B or 1, 1, 1, N)` is in fp32."""
        batch, heads, n, width = keys.shape
        queries, keys = in_a_row(queries), in_a_row(keys)
        rows = torch.empty(batch, heads * class_tokens, n, dtype=torch.float32, device=keys.device)
        of_bias = (0, 0) if bias is None else (bias.stride(0) if bias.shape[0] > 1 else 0, bias.stride(3))
        given = (
            queries, keys, keys if bias is None else bias, rows, *queries.stride()[:3], *keys.stride()[:3], *of_bias,
            n, class_tokens, width**-0.5, heads * class_tokens,
        )  # fmt: skip
        block = max(16, next_power_of_2(width))
        return cls(rows, given, {"HEAD": width, "BIASED": bias is not None, "KEYS": KEYS, "BLOCK_HEAD": block})

    @property
    def count(self) -> int:
        """How many rows an image has."""
        return self.rows.shape[1]

    def write(self) -> Tensor:
        """The rows, by a launch of their own."""
        start(_class_row, self.rows)[(self.count, self.rows.shape[0])](*self.given, **self.constants)
        return self.rows


class Weights(NamedTuple):
    """What makes tokens weigh `size^(1 - part) a^part`: the rows whose mean a is, how many of their places stand before
    the tokens, the part, and the least of a, which is divided by how many tokens there are."""

    rows: Tensor
    prefix: int
    part: float
    least: float


def weighing(weights: Weights | None, like: Tensor) -> tuple[tuple[Any, ...], dict[str, int]]:
    """What kernels take for `weights_of`, and its constants; None: no rows, sizes are what counts."""
    if weights is None:
        return (like, 0, 0, 0.0, 0.0), {"ROWS": 0, "BLOCK_ROWS": 0}
    _, count, length = weights.rows.shape
    return (weights.rows, length, *weights[1:]), {"ROWS": count, "BLOCK_ROWS": next_power_of_2(count)}


@operator
def class_rows(queries: Tensor, keys: Tensor, bias: Tensor | None, class_tokens: int) -> Tensor:
    """Attention of the first `class_tokens` of `queries (B, H, N, d)` to every token, `(B, N)` in fp32: mean over heads
    and class tokens. `bias (B or 1, 1, 1, N)` is in fp32."""
    return Rows.of(queries, keys, bias, class_tokens).write().mean(1)


@jit(do_not_specialize=["total", "class_tokens", "stride_bias", "scale", "count"])
def _class_row(
    queries, keys, bias, rows, query_image, query_head, query_token, key_image, key_head, key_token,
    stride_bias, bias_token, total, class_tokens, scale, count,
    HEAD: tl.constexpr, BIASED: tl.constexpr, KEYS: tl.constexpr, BLOCK_HEAD: tl.constexpr,
):  # fmt: skip
    write_row(
        queries, keys, bias, rows, query_image, query_head, query_token, key_image, key_head, key_token,
        stride_bias, bias_token, total, class_tokens, scale, count, HEAD, BIASED, KEYS, BLOCK_HEAD,
    )  # fmt: skip


@jit
def write_row(
    queries, keys, bias, rows, query_image, query_head, query_token, key_image, key_head, key_token,
    stride_bias, bias_token, n, class_tokens, scale, count,
    HEAD: tl.constexpr, BIASED: tl.constexpr, KEYS: tl.constexpr, BLOCK_HEAD: tl.constexpr,
):  # fmt: skip
    """One of the `count` rows of an image, that of the program: of a class token in a head."""
    image, row = tl.program_id(1).to(tl.int64), tl.program_id(0)
    head, column = row // class_tokens, tl.arange(0, BLOCK_HEAD)
    query = queries + image * query_image + head * query_head + row % class_tokens * query_token
    scale = tl.cast(scale, tl.float32) * LOG2_E  # compilers pass it in fp64
    wanted = tl.load(query + column, mask=column < HEAD, other=0.0).to(tl.float32) * scale
    keys += image * key_image + head * key_head
    bias += image * stride_bias
    rows += (image * count + row) * n
    greatest, total = tl.full([KEYS], -float("inf"), tl.float32), tl.zeros([KEYS], tl.float32)
    for begin in range(0, n, KEYS):
        number = begin + tl.arange(0, KEYS)
        inside = (number < n)[:, None] & (column < HEAD)[None, :]
        key = tl.load(keys + number.to(tl.int64)[:, None] * key_token + column[None, :], mask=inside, other=0.0)
        logit = tl.sum(key.to(tl.float32) * wanted[None, :], 1)
        if BIASED:
            logit += tl.load(bias + number * bias_token, mask=number < n, other=0.0) * LOG2_E
        tl.store(rows + number, logit, mask=number < n)
        larger = tl.maximum(greatest, tl.where(number < n, logit, -float("inf")))
        anchor = tl.where(larger == -float("inf"), 0.0, larger)
        total = total * tl.exp2(greatest - anchor) + tl.where(number < n, tl.exp2(logit - anchor), 0.0)
        greatest = larger
    highest = tl.max(greatest, 0)
    # Where nothing is greater, the total is 0, or no number where a key is none.
    total = tl.sum(tl.where(greatest == -float("inf"), total, total * tl.exp2(greatest - highest)), 0)
    tl.debug_barrier()
    for begin in range(0, n, KEYS):
        number = begin + tl.arange(0, KEYS)
        logit = tl.load(rows + number, mask=number < n, other=0.0)
        tl.store(rows + number, tl.exp2(logit - highest) / total, mask=number < n)


@jit
def mean_of_rows(rows, token, is_token, length, ROWS: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """The mean attention of ROWS rows of `length` to the tokens. All are read at once: read one by one they would be
    read again by every thread that needs the mean."""
    row = tl.arange(0, BLOCK_ROWS)
    inside = (row < ROWS)[:, None] & is_token[None, :]
    return tl.sum(tl.load(rows + row[:, None] * length + token[None, :], mask=inside, other=0.0), 0) / ROWS


@jit
def weights_of(size, rows, token, n, length, part, least, ROWS: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """`size^(1 - part) a^part` with the mean attention a, which is `least` / n where it is less or no number."""
    part, least = tl.cast(part, tl.float32), tl.cast(least, tl.float32) / n  # compilers pass them in fp64
    seen = mean_of_rows(rows, token, token < n, length, ROWS, BLOCK_ROWS)
    seen = tl.where(seen > least, seen, least)
    return tl.exp2(part * tl.log2(seen) + (1 - part) * tl.log2(size))

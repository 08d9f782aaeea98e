"""What reducers may ask of a block's attention, computed from its queries and keys beside the fused kernel.

Everywhere `queries`, `keys (B, H, N, d)` are those of the whole sequence, protected tokens included, and `bias` the
additive logits, `(B, 1, 1, N)` of the keys or `(B, H, N, N)` of queries and keys, or None. Results are in fp32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tokenreduce.ops.native.dispatch import choose

TILE = 1024  # queries whose attention is in memory at once


def attention_map(queries: Tensor, keys: Tensor, bias: Tensor | None = None) -> Tensor:
    """The attention of `queries (B, H, Q, d)` to all keys after softmax: `(B, H, Q, N)`."""
    logits = (queries.float() * queries.shape[-1] ** -0.5) @ keys.float().transpose(-2, -1)
    return (logits if bias is None else logits + bias).softmax(-1)


def class_rows(queries: Tensor, keys: Tensor, bias: Tensor | None, class_tokens: int) -> Tensor:
    """Attention of the first tokens to every token, `(B, N)`: mean over heads and `class_tokens`."""
    kernel = kernel_of_rows(queries, keys, bias)
    if kernel is not None:
        return kernel(queries, keys, bias, class_tokens)
    return attention_map(queries[:, :, :class_tokens], keys, of_queries(bias, 0, class_tokens)).mean((1, 2))


def kernel_of_rows(queries: Tensor, keys: Tensor, bias: Tensor | None) -> Callable[..., Tensor] | None:
    """The kernel `class_rows` for these, or None."""
    if not of_keys(bias) or queries.dtype != keys.dtype or queries.shape[:2] != keys.shape[:2]:
        return None
    return choose("class_rows", queries)


def of_keys(bias: Tensor | None) -> bool:
    """Whether the logits are the same for all heads and queries, as kernels take them."""
    return bias is None or (bias.dtype == torch.float32 and bias.shape[1:3] == (1, 1))


def of_queries(bias: Tensor | None, start: int, stop: int) -> Tensor | None:
    """The logits of the queries from `start` to `stop`."""
    return bias if bias is None or bias.shape[2] == 1 else bias[:, :, start:stop]


def received_and_own(
    queries: Tensor, keys: Tensor, bias: Tensor | None = None, padding: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The attention that each token receives from all queries but `padding (B, N)`, itself included, and its attention
    to itself: `(B, H, N)` each.

    Goes through the queries in tiles, so that memory grows with N and not with its square.
    """
    whole = bias is None or bias.shape[0] == keys.shape[0]
    if padding is None and whole and of_keys(bias) and queries.dtype == keys.dtype and queries.shape == keys.shape:
        compiled = choose("attention_statistics", queries)
        if compiled is not None:
            return compiled(queries, keys, bias)
    received, own = None, []
    for start in range(0, queries.shape[2], TILE):
        end = start + TILE
        tile = attention_map(queries[:, :, start:end], keys, of_queries(bias, start, end))
        tile = without_padding(tile, None if padding is None else padding[:, start:end])
        total = tile.sum(2)
        received = total if received is None else received + total
        own.append(tile.diagonal(offset=start, dim1=2, dim2=3))
    assert received is not None
    return received, torch.cat(own, -1)


def without_padding(rows: Tensor, padding: Tensor | None) -> Tensor:
    """Attention `(B, H, Q, N)` whose rows are zero for the queries that are `padding (B, Q)`."""
    return rows if padding is None else rows.masked_fill(padding[:, None, :, None], 0)

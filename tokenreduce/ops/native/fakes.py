"""Shapes and types of what the compiled kernels return, for `torch.compile`: there each is one operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

NAMESPACE = "tokenreduce_kernels"


def pairs(x: Tensor, n: int, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """`dest (B, N)`, `rep (B, M)` and `sources (B, N - M)` of one map."""
    dest, rep, sources = (x.new_empty(x.shape[0], count, dtype=torch.int64) for count in (n, keep, n - keep))
    return dest, rep, sources


def merged(x: Tensor, keep: int, prefix: int, suffix: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, sizes and the bias of sizes."""
    batch, left = x.shape[0], prefix + keep + suffix
    sizes, bias = (x.new_empty(shape, dtype=torch.float32) for shape in ((batch, keep), (batch, 1, 1, left)))
    return x.new_empty(batch, left, x.shape[2]), sizes, bias


def gradients(like: Tensor, given: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Those of each tensor, and an empty one for each None."""
    return tuple(like.new_empty(0) if t is None else t.new_empty(t.shape) for t in given)


def bipartite_match(metric: Tensor, keep: int, first: int) -> tuple[Tensor, Tensor, Tensor]:
    return pairs(metric, metric.shape[-2], keep)


def ward_match(
    features: Tensor, sizes: Tensor | None, signs: Tensor | None, width: int, counts: list[int], first: int
) -> tuple[Tensor, Tensor, Tensor]:
    return pairs(features, features.shape[1], counts[-1] if counts else features.shape[1])


def ward_cluster(
    metric: Tensor, sizes: Tensor | None, signs: Tensor | None, width: int, directions: bool, keep: int
) -> tuple[Tensor, Tensor, Tensor]:
    return pairs(metric, metric.shape[-2], keep)


def ward_in_place(
    features: Tensor,
    positions: Tensor,
    sizes: Tensor | None,
    signs: Tensor | None,
    width: int,
    nearness: float,
    keep: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    middles = positions.new_empty(positions.shape[0], keep, positions.shape[2])
    return *pairs(features, features.shape[1], keep), middles


def merge_apply(
    x: Tensor, dest: Tensor, rep: Tensor, sources: Tensor, sizes: Tensor | None, prefix: int, suffix: int
) -> tuple[Tensor, Tensor, Tensor]:
    return merged(x, rep.shape[1], prefix, suffix)


def bipartite_merge(
    x: Tensor, metric: Tensor, sizes: Tensor | None, keep: int, first: int, prefix: int, suffix: int
) -> tuple[Tensor, ...]:
    return *merged(x, keep, prefix, suffix), *pairs(x, x.shape[1] - prefix - suffix, keep)


def size_bias(sizes: Tensor, prefix: int, suffix: int) -> Tensor:
    return sizes.new_empty(sizes.shape[0], 1, 1, prefix + sizes.shape[1] + suffix)


def attention_statistics(queries: Tensor, keys: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    received, own = (queries.new_empty(queries.shape[:3], dtype=torch.float32) for _ in range(2))
    return received, own


def class_rows(queries: Tensor, keys: Tensor, bias: Tensor | None, class_tokens: int) -> Tensor:
    return keys.new_empty(keys.shape[0], keys.shape[2], dtype=torch.float32)


def pitome_energy(metric: Tensor, margin: float, alpha: float, above_margin: bool) -> Tensor:
    return metric.new_empty(metric.shape[:2], dtype=torch.float64)


def restore_apply(
    y: Tensor, dest: Tensor, before: Tensor | None, after: Tensor | None, prefix: int, suffix: int
) -> Tensor:
    return y.new_empty(y.shape[0], prefix + dest.shape[1] + suffix, y.shape[2])


def krige_apply(y: Tensor, dest: Tensor, before: Tensor, after: Tensor, prefix: int, suffix: int, *rest: Any) -> Tensor:
    return restore_apply(y, dest, before, after, prefix, suffix)


def selective_scan(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


def selective_scan_backward(grad: Tensor, *given: Any) -> tuple[Tensor, ...]:
    return gradients(grad, given[:9])


def order_outputs(dest: Tensor, rep: Tensor) -> tuple[Tensor, Tensor]:
    return dest.new_empty(dest.shape), rep.new_empty(rep.shape)


def scan_walks(
    origin: Tensor, stands: Tensor, sizes: Tensor, place: int, prefix: int, taps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, rows = origin.shape[0], prefix + origin.shape[1]
    order, ahead, back = (origin.new_empty(batch, rows, *rest) for rest in ((), (taps,), (taps,)))
    return order, ahead, back, sizes.new_empty(batch, rows)


def causal_conv(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


def causal_conv_backward(grad: Tensor, *given: Any) -> tuple[Tensor, ...]:
    return gradients(grad, given[:3])


FAKES = (
    bipartite_match,
    ward_match,
    ward_cluster,
    ward_in_place,
    merge_apply,
    bipartite_merge,
    size_bias,
    attention_statistics,
    class_rows,
    pitome_energy,
    restore_apply,
    krige_apply,
    selective_scan,
    selective_scan_backward,
    order_outputs,
    scan_walks,
    causal_conv,
    causal_conv_backward,
)


def register() -> None:
    """Tell PyTorch, once the operators are loaded."""
    for fake in FAKES:
        torch.library.register_fake(f"{NAMESPACE}::{fake.__name__}", fake)

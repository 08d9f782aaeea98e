"""Bipartite soft matching: every source has one target that it may merge into (Bolya et al., ICLR 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.constants import counting
from tokenreduce.ops.native.dispatch import choose
from tokenreduce.ops.order import stable_order
from tokenreduce.ops.products import ranks, suits
from tokenreduce.reducers.parts.bipartition import Bipartition
from tokenreduce.reducers.parts.cosine import normalised


def match_bipartite(metric: Tensor, keep: int, first: int = 0) -> TokenMap:
    """The map of one bipartite soft matching.

    Args:
        metric: `(B, N, d)`, or `(B, H, N, d)` for its mean over heads, compared by cosine in fp32.
        keep: tokens left; at least N - N // 2.
        first: index of the first source; sources are every second token from there.
    """
    compiled = choose("bipartite_match", metric)
    if compiled is not None:
        dest, rep, moved = compiled(metric, keep, first)
        return TokenMap(keep, dest=dest, rep=rep, sources=moved)
    metric = metric.mean(1, dtype=torch.float32) if metric.ndim == 4 else metric.float()
    best, match = alternating_scores(metric, first).max(-1)
    if suits(metric, metric.shape[1]):
        return Bipartition(ranks(best), match, metric.shape[1], keep, first)
    sources, targets = alternating(metric, first)
    return merge_best(best, match, sources, targets, keep)


def alternating(metric: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Places of the sources `(B, A)`, every second token from `first`, and of the targets `(B, N - A)`."""
    batch, n, _ = metric.shape
    count = (n - first + 1) // 2
    sources = counting(count, metric.device, 2) + first
    targets = counting(n - count, metric.device, 2) + (1 - first)
    return sources.expand(batch, -1), targets.expand(batch, -1)


def alternating_scores(metric: Tensor, first: int) -> Tensor:
    """Cosine of every source and every target of `alternating`, `(B, A, N - A)`."""
    unit = normalised(metric)
    return unit[:, first::2] @ unit[:, 1 - first :: 2].transpose(1, 2)


def merge_best(best: Tensor, match: Tensor, sources: Tensor, targets: Tensor, keep: int) -> TokenMap:
    """The map that merges the N - `keep` sources with the best scores, each into its match.

    Args:
        best, match: `(B, A)`, every source's score and which of the targets it would merge into.
        sources, targets: places of both `(B, A)`, `(B, N - A)`, in ascending order.
    """
    batch, n = best.shape[0], sources.shape[1] + targets.shape[1]
    device, removed = best.device, n - keep
    order = stable_order(best, 1, descending=True)
    places = sources.gather(1, order)
    moved, kept = places[:, :removed], places[:, removed:].sort(dim=1).values
    rep = torch.cat([kept, targets], 1)
    dest = counting(1, device).expand(batch, n).scatter(1, rep, counting(keep, device).expand(batch, -1))
    dest = dest.scatter(1, moved, match.gather(1, order[:, :removed]) + kept.shape[1])
    return TokenMap(keep, dest=dest, rep=rep, sources=moved)

"""Ward's criterion in rounds of a bipartition: the cheap form of agglomerative clustering."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.maps.token_map import TokenMap
from tokenreduce.reducers.parts.bipartite import alternating, merge_best


def merge_in_rounds(points: Tensor, sizes: Tensor | None, counts: list[int], first: int) -> TokenMap:
    """The map of rounds that leave `counts` of `points (B, N, d)`."""
    total = step = ward_round(points, sizes, counts[0], first)
    for left in counts[1:]:
        points, sizes = step.apply(points, sizes), step.sizes(sizes)
        step = ward_round(points, sizes, left, first)
        total = follow(total, step)
    return total


def ward_round(points: Tensor, sizes: Tensor | None, keep: int, first: int) -> TokenMap:
    """Merge the N - `keep` cheapest of the pairs (source, its cheapest target) of `points (B, N, d)`.

    Sources are every second token from `first`.
    """
    sources, targets = alternating(points, first)
    a, b = points[:, first::2], points[:, 1 - first :: 2]
    squares = points.square().sum(-1, keepdim=True)
    ones = torch.ones_like(squares)
    # |a|^2 + |b|^2 - 2 a.b as one product, without passes over the A x B matrix.
    left = torch.cat([a * -2, squares[:, first::2], ones[:, first::2]], -1)
    right = torch.cat([b, ones[:, 1 - first :: 2], squares[:, 1 - first :: 2]], -1)
    cost = left @ right.transpose(1, 2)
    if sizes is not None:
        inverse = sizes.reciprocal()
        cost = cost / (inverse[:, first::2, None] + inverse[:, None, 1 - first :: 2])
    best, match = cost.min(-1)
    return merge_best(-best, match, sources, targets, keep)


def follow(done: TokenMap, step: TokenMap) -> TokenMap:
    """`done`, then `step`, as one map of merges."""
    both = done.compose(step)
    assert done.rep is not None and done.sources is not None and step.sources is not None
    sources = torch.cat([done.sources, done.rep.gather(1, step.sources)], 1)
    return TokenMap(both.count, dest=both.dest, rep=both.rep, sources=sources)


def round_counts(n: int, keep: int, rounds: int) -> list[int]:
    """Tokens left after each round: equal shares of what is to go, but never more than half of the tokens at once."""
    counts, now = [], n
    for i in range(rounds):
        wanted = n - (n - keep) * (i + 1) // rounds
        least_after = keep
        for _ in range(rounds - 1 - i):
            least_after *= 2  # the rounds to come can halve what this one leaves
        left = max(now - now // 2, min(wanted, least_after))
        if left < now:
            counts.append(left)
            now = left
    return counts

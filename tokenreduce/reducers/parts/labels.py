"""From the labels of clusters to a map."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.constants import counting
from tokenreduce.ops.order import stable_order
from tokenreduce.ops.rows import take


def map_of_clusters(label: Tensor, keep: int) -> TokenMap:
    """Merges the members of each of `keep` clusters; `label (B, N)` is the first member of each token's cluster.

    Clusters are ordered by their first members, which represent them.
    """
    first = label == counting(label.shape[1], label.device)
    order = stable_order((~first).int(), 1)
    dest = (first.cumsum(1) - 1).gather(1, label)
    return TokenMap(keep, dest=dest, rep=order[:, :keep], sources=order[:, keep:])


def with_central(token_map: TokenMap, positions: Tensor, sizes: Tensor | None) -> TokenMap:
    """The same merging map, each output represented by the member nearest to the mean of its members' `positions (B, N,
    2)`, weighed by `sizes (B, N)`; of equals by the first."""
    dest, count, n = token_map.dest, token_map.count, positions.shape[1]
    assert dest is not None
    middle = TokenMap(count, dest=dest).apply(positions, sizes)
    # Where a member stands in the order of its distance: a whole number, so that each cluster has one least.
    distance = (positions - take(middle, dest)).square().sum(-1)
    order = stable_order(distance, 1)
    places = counting(n, dest.device).expand_as(dest)
    rank = torch.empty_like(order).scatter(1, order, places)
    least = torch.full_like(dest[:, :count], n).scatter_reduce(1, dest, rank, "amin")
    rep = order.gather(1, least)
    is_rep = torch.zeros_like(dest).scatter(1, rep, 1)
    return TokenMap(count, dest=dest, rep=rep, sources=stable_order(is_rep, 1)[:, : n - count])

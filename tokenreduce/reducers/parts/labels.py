"""From the labels of clusters to a map."""

from __future__ import annotations

from torch import Tensor

from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.constants import counting
from tokenreduce.ops.order import stable_order


def map_of_clusters(label: Tensor, keep: int) -> TokenMap:
    """Merges the members of each of `keep` clusters; `label (B, N)` is the first member of each token's cluster.

    Clusters are ordered by their first members, which represent them.
    """
    first = label == counting(label.shape[1], label.device)
    order = stable_order((~first).int(), 1)
    dest = (first.cumsum(1) - 1).gather(1, label)
    return TokenMap(keep, dest=dest, rep=order[:, :keep], sources=order[:, keep:])

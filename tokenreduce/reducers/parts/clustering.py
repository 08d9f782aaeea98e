"""What the clustering methods share: their options, and the map of a clustering."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.order import stable_order
from tokenreduce.reducers.checks import check_count, check_option
from tokenreduce.reducers.contract import EVERYWHERE, Reducer
from tokenreduce.reducers.parts.clusters import SEEDINGS, rank_of
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens


@dataclass(frozen=True)
class Clustering(Reducer):
    """The options that all clustering methods have."""

    metric: str = "keys"
    weights: str = "size"

    kind: ClassVar[str] = "clustering"
    places: ClassVar[frozenset[str]] = EVERYWHERE
    needs: ClassVar[frozenset[str]] = frozenset({"mean_keys"})

    def __post_init__(self) -> None:
        check_option("metric", self.metric, ("keys", "features"))
        check_option("weights", self.weights, ("size", "attention"))

    def required(self) -> frozenset[str]:
        wanted = {"mean_keys": self.metric == "keys", "received_attention": self.weights == "attention"}
        return frozenset(name for name, is_wanted in wanted.items() if is_wanted)

    def points(self, tokens: Tokens) -> Tensor:
        """What is clustered, `(B, N, d)` in fp32."""
        return tokens.mean_keys.float() if self.metric == "keys" else tokens.features.float()

    def mass(self, tokens: Tokens) -> Tensor:
        """How much each token counts, `(B, N)`: attention to a token of size s already counts it s times."""
        if self.weights == "attention":
            return tokens.received_attention.mean(1).clamp_min(1e-12)
        return torch.ones_like(tokens.features[..., 0], dtype=torch.float32) if tokens.sizes is None else tokens.sizes

    def points_width(self, step: Step) -> int:
        """Channels of what is clustered."""
        return step.head_dim if self.metric == "keys" else step.width

    def comparing_work(self, step: Step) -> int:
        """MACs of `squared_distances` of the points, and of `mass`."""
        return step.n**2 * self.points_width(step) + (step.attention if self.weights == "attention" else 0)

    def merge(self, tokens: Tokens, labels: Tensor, rep: Tensor) -> TokenMap:
        """The map to the means of the clusters `labels (B, N)`, weighted by `mass`, in the order of `rep (B, M)`."""
        dest, rep, sources = by_representative(labels, rep)
        if self.weights == "size":
            return TokenMap(rep.shape[1], dest=dest, rep=rep, sources=sources)
        mass = self.mass(tokens)
        share = mass if tokens.sizes is None else mass / tokens.sizes
        return TokenMap(
            rep.shape[1], dest=dest, weight=share, size_weight=torch.ones_like(mass), rep=rep, sources=sources
        )


def check_rounds(seeding: object, iterations: object) -> None:
    """Raise for impossible values of the options of iterated clustering."""
    check_option("seeding", seeding, SEEDINGS)
    check_count("iterations", iterations)


def by_representative(labels: Tensor, rep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Labels and representatives with clusters in ascending order of representative, and all other tokens."""
    order = rep.argsort(dim=1)
    rep = rep.gather(1, order)
    is_rep = torch.zeros_like(labels).scatter(1, rep, 1)
    sources = stable_order(is_rep, 1)[:, : labels.shape[1] - rep.shape[1]]
    return rank_of(order).gather(1, labels), rep, sources

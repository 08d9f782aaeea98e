"""k-means over tokens (Token Pooling), and what the clustering methods share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenreduce.errors import InvalidValueError
from tokenreduce.kernels.clusters import SEEDINGS, choose_seeds, k_means, rank_of, squared_distances
from tokenreduce.ordering import stable_order
from tokenreduce.registry import Reducer, check_option, register
from tokenreduce.token_map import TokenMap
from tokenreduce.tokens import Tokens


@dataclass(frozen=True)
class Clustering(Reducer):
    """The options that all clustering methods have."""

    metric: str = "keys"
    weights: str = "size"

    kind: ClassVar[str] = "clustering"
    needs: ClassVar[frozenset[str]] = frozenset({"mean_keys"})
    shape: ClassVar[str] = "stages"

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


@register
@dataclass(frozen=True)
class KMeans(Clustering):
    """Replace the tokens by the means of their k-means clusters (training-free part of a trained method).

    Marin et al., "Token Pooling in Vision Transformers for Image Classification", WACV 2023, arXiv 2110.03860:
    minimise `sum_i w_i min_j |f_i - c_j|^2` over M centres of the points f `(B, N, d)`; every round assigns each token
    to its nearest centre and moves each centre to the weighted mean of its tokens. A token of the output is the
    weighted mean of its cluster's features; outputs stand in the order of the members nearest to the centres, which
    represent them.

    Departures: the points are the head-mean keys by default and the weights the sizes, since attention weights (the
    paper's) need the attention map. A fixed number of rounds instead of a stop test. A cluster that ends up empty (the
    paper keeps its centre) takes the token that adds most to the objective. The paper starts at the tokens of largest
    weight, which says nothing while all sizes are 1; our default starts at the tokens that would lose most by joining
    their nearest denser token.

    Args:
        metric: "keys", or "features" for the residual stream.
        weights: what a token counts for in clustering and merging: its "size", or the "attention" it receives.
        seeding: "density" as above, "weight" the largest weights, "kkz" the largest norm, then farthest first.
        iterations: rounds.
    """

    seeding: str = "density"
    iterations: int = 5

    name: ClassVar[str] = "kmeans"
    paper: ClassVar[str] = "arXiv 2110.03860"
    year: ClassVar[int] = 2023

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rounds(self.seeding, self.iterations)

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        points, mass = self.points(tokens), self.mass(tokens)
        seeds = choose_seeds(squared_distances(points), points.norm(dim=-1), mass, keep, self.seeding)
        return self.merge(tokens, *k_means(points, mass, seeds, self.iterations))


def check_rounds(seeding: object, iterations: object) -> None:
    """Raise for impossible values of the options of iterated clustering."""
    check_option("seeding", seeding, SEEDINGS)
    check_option("iterations", iterations, int)
    check_at_least_one("iterations", iterations)  # type: ignore[arg-type]


def check_at_least_one(name: str, value: int) -> None:
    """Raise for a count below 1."""
    if value < 1:
        raise InvalidValueError(f"option {name} is {value}; it must be 1 or more")


def by_representative(labels: Tensor, rep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Labels and representatives with clusters in ascending order of representative, and all other tokens."""
    order = rep.argsort(dim=1)
    rep = rep.gather(1, order)
    is_rep = torch.zeros_like(labels).scatter(1, rep, 1)
    sources = stable_order(is_rep, 1)[:, : labels.shape[1] - rep.shape[1]]
    return rank_of(order).gather(1, labels), rep, sources

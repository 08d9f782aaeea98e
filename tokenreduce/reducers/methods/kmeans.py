"""k-means over tokens (Token Pooling)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tokenreduce.maps.token_map import TokenMap
from tokenreduce.reducers.parts.clustering import Clustering, check_rounds
from tokenreduce.reducers.parts.clusters import choose_seeds, k_means, k_means_work, squared_distances
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens


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
        iterations: rounds. More of them cost more than they gain where every block clusters.
    """

    seeding: str = "density"
    iterations: int = 1

    name: ClassVar[str] = "kmeans"
    paper: ClassVar[str] = "arXiv 2110.03860"
    year: ClassVar[int] = 2023
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = "its specification; its authors published no code"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rounds(self.seeding, self.iterations)

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        points, mass = self.points(tokens), self.mass(tokens)
        seeds = choose_seeds(squared_distances(points), points.norm(dim=-1), mass, keep, self.seeding)
        return self.merge(tokens, *k_means(points, mass, seeds, self.iterations))

    def work(self, step: Step) -> int:
        means = k_means_work(step.n, step.keep, self.points_width(step), self.iterations)
        return self.comparing_work(step) + means

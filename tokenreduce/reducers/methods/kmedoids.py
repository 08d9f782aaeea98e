"""k-medoids over tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from tokenreduce.maps.token_map import TokenMap
from tokenreduce.reducers.checks import check_option
from tokenreduce.reducers.parts.clustering import Clustering, by_representative, check_rounds
from tokenreduce.reducers.parts.clusters import choose_seeds, k_medoids, squared_distances
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens


@register
@dataclass(frozen=True)
class KMedoids(Clustering):
    """Replace the tokens by their k-medoids clusters: means or medoids (training-free part of a trained method).

    Marin et al., "Token Pooling in Vision Transformers for Image Classification", WACV 2023, arXiv 2110.03860;
    unweighted with `seeding="kkz", aggregate=False` also Zhao et al., "CenterCLIP", SIGIR 2022, arXiv 2205.00823. Every
    round assigns each token to its nearest medoid and takes as medoid of a cluster its member with the least
    `sum_t w_t |f_i - f_t|` over the members t. Outputs stand in the order of their medoids.

    Departures: as for `kmeans`; a medoid always belongs to its own cluster, also where another one equals it, so that
    no cluster is empty. The authors published no code. That of JoakimHaurum/TokenReduction takes the member with the
    least sum over all tokens, weighted by its own weight, which favours tokens of little weight: other medoids.

    Args:
        metric: "keys", or "features" for the residual stream.
        weights: what a token counts for in clustering and merging: its "size", or the "attention" it receives.
        seeding: "density", "weight" or "kkz", see `kmeans`.
        iterations: rounds, see `kmeans`.
        aggregate: the output is the weighted mean of its cluster; False: its medoid as it is, standing for the sizes
            of all members.
    """

    seeding: str = "density"
    iterations: int = 1
    aggregate: bool = True

    name: ClassVar[str] = "kmedoids"
    paper: ClassVar[str] = "arXiv 2110.03860"
    year: ClassVar[int] = 2023
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = (
        "its specification; mzhaoshuai/CenterCLIP@886fe73, clusters and medoids equal but for ties and what follows"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rounds(self.seeding, self.iterations)
        check_option("aggregate", self.aggregate, bool)

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        points, mass = self.points(tokens), self.mass(tokens)
        squared = squared_distances(points)
        seeds = choose_seeds(squared, points.norm(dim=-1), mass, keep, self.seeding)
        labels, medoids = k_medoids(squared.sqrt(), mass, seeds, self.iterations)
        if self.aggregate:
            return self.merge(tokens, labels, medoids)
        dest, rep, sources = by_representative(labels, medoids)
        ones = torch.ones_like(mass)
        weight = ones.scatter(1, sources, 0.0)
        return TokenMap(keep, dest=dest, weight=weight, size_weight=ones, rep=rep, sources=sources, drops=True)

    def work(self, step: Step) -> int:
        return self.comparing_work(step) + self.iterations * step.n**2

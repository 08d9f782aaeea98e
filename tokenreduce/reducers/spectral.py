"""Spectral clustering of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.kernels.clusters import choose_seeds, k_means, k_medoids, squared_distances
from tokenreduce.reducers.kmeans import Clustering, check_rounds
from tokenreduce.registry import check_option, register
from tokenreduce.token_map import TokenMap
from tokenreduce.tokens import Tokens


@register
@dataclass(frozen=True)
class Spectral(Clustering):
    """Cluster tokens in the leading eigenvectors of their affinity graph (training-free part of a trained method).

    Zhao et al., "CenterCLIP: Token Clustering for Efficient Text-Video Retrieval", SIGIR 2022, arXiv 2205.00823.
    Affinities `W_ij = exp(-|f_i - f_j|^2 / (2 sigma^2))`; the M eigenvectors of `I - D^-1/2 W D^-1/2` `(B, N, N)` with
    the smallest eigenvalues are the columns of U `(B, N, M)`; its rows, normalised, are clustered. Outputs are weighted
    means of their clusters in the order of their representatives.

    Departures: sigma is a multiple of the median distance in the image (the paper's 2 makes W the identity for features
    of large norm). No nearest-neighbour graph, no masks. The signs of the eigenvectors are left as they come: no
    distance between rows depends on them. As the paper, but more of a problem where most tokens are kept: the last of
    many eigenvectors carry little, so that copies of a token may end up in different clusters. KKZ starts at the row
    of largest norm before normalising.

    Slow: one eigendecomposition an image, for which the host waits on a GPU.

    Args:
        metric: "keys", or "features" for the residual stream.
        weights: what a token counts for in clustering and merging: its "size", or the "attention" it receives.
        sigma: width of the affinity, in median distances.
        clusters: "kmedoids" or "kmeans", on the rows.
        seeding: "density", "weight" or "kkz", see `kmeans`.
        iterations: rounds.
    """

    sigma: float = 0.5
    clusters: str = "kmedoids"
    seeding: str = "density"
    iterations: int = 5

    name: ClassVar[str] = "spectral"
    paper: ClassVar[str] = "arXiv 2205.00823"
    year: ClassVar[int] = 2022

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.sigma, bool) or not isinstance(self.sigma, (int, float)):
            raise InvalidTypeError(f"option sigma is {self.sigma!r}; it must be a number")
        if not 0 < self.sigma < float("inf"):
            raise InvalidValueError(f"option sigma is {self.sigma}; it must be positive and finite")
        check_option("clusters", self.clusters, ("kmedoids", "kmeans"))
        check_rounds(self.seeding, self.iterations)

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        mass = self.mass(tokens)
        rows = eigenvectors(affinity(squared_distances(self.points(tokens)), self.sigma), keep)
        norm = rows.norm(dim=-1)
        rows = rows / norm.clamp_min(1e-6)[..., None]
        squared = squared_distances(rows)
        seeds = choose_seeds(squared, norm, mass, keep, self.seeding)
        if self.clusters == "kmeans":
            return self.merge(tokens, *k_means(rows, mass, seeds, self.iterations))
        return self.merge(tokens, *k_medoids(squared.sqrt(), mass, seeds, self.iterations))


def affinity(squared: Tensor, sigma: float) -> Tensor:
    """`(B, N, N)`: Gaussian affinities of squared distances, `sigma` in (lower) median distances between two tokens."""
    n = squared.shape[1]
    if n > 1:
        pairs = squared.flatten(1).sort(dim=1).values[:, n:]  # without one zero for each token itself
        median = pairs[:, (n * (n - 1) - 1) // 2]
    else:
        median = squared[:, 0, 0]
    return torch.exp(-squared / (2 * sigma**2 * median.clamp_min(1e-12))[:, None, None])


def eigenvectors(graph: Tensor, count: int) -> Tensor:
    """`(B, N, count)`: those of the normalised Laplacian of `graph (B, N, N)` with the smallest eigenvalues first."""
    scale = graph.sum(-1).rsqrt()
    normalised = scale[:, :, None] * graph * scale[:, None, :]
    # The largest of D^-1/2 W D^-1/2 are the smallest of I minus it.
    return torch.linalg.eigh(normalised).eigenvectors[:, :, -count:].flip(2)

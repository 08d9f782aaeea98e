"""Spectral clustering of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.tracing import repeat, to_onnx
from tokenreduce.reducers.checks import check_option
from tokenreduce.reducers.parts.clustering import Clustering, check_rounds
from tokenreduce.reducers.parts.clusters import choose_seeds, k_means, k_means_work, k_medoids, squared_distances
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens

PURIFYING = 80  # rounds, which separate eigenvalues that differ by 1e-6


@register
@dataclass(frozen=True)
class Spectral(Clustering):
    """Cluster tokens in the leading eigenvectors of their affinity graph (training-free part of a trained method).

    Zhao et al., "CenterCLIP: Token Clustering for Efficient Text-Video Retrieval", SIGIR 2022, arXiv 2205.00823.
    Affinities `W_ij = exp(-|f_i - f_j|^2 / (2 sigma^2))`; the M eigenvectors of `I - D^-1/2 W D^-1/2` `(B, N, N)` with
    the smallest eigenvalues are the columns of U `(B, N, M)`; its rows, normalised, are clustered. Outputs are weighted
    means of their clusters in the order of their representatives.

    Departures: sigma is a multiple of the median distance in the image (the paper's 2 makes W the identity for features
    of large norm, whose eigenvectors are arbitrary). No nearest-neighbour graph, no masks. The signs of the
    eigenvectors are left as they come: no distance between rows depends on them. As the paper, but more of a problem
    where most tokens are kept: the last of many eigenvectors carry little, so that copies of a token may end up in
    different clusters. KKZ starts at the row of largest norm before normalising (the published code looks for it among
    rows of norm 1, where rounding decides). Means, where the published code returns the medoids unless
    told otherwise; at most 5 rounds instead of 100, which gain nothing; of the two members of a pair the first is
    its medoid (there by rounding). Where the eigenvalue after the last one taken is as large up to rounding, clusters
    differ from those of the published code, and its own in single and double precision differ.

    Slow: one eigendecomposition an image, for which the host waits on a GPU.

    Args:
        metric: "features" for the residual stream, or "keys".
        weights: what a token counts for in clustering and merging: its "size", or the "attention" it receives.
        sigma: width of the affinity, in median distances.
        clusters: "kmedoids" or "kmeans", on the rows.
        seeding: "density", "weight" or "kkz", see `kmeans`.
        iterations: rounds.
    """

    metric: str = "features"
    sigma: float = 0.5
    clusters: str = "kmedoids"
    seeding: str = "kkz"
    iterations: int = 5

    name: ClassVar[str] = "spectral"
    paper: ClassVar[str] = "arXiv 2205.00823"
    year: ClassVar[int] = 2022
    exportable: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset()
    shape: ClassVar[str] = "stages"  # every block would take four times as many eigendecompositions, and gains nothing
    checked: ClassVar[str] = (
        "its specification; mzhaoshuai/CenterCLIP@886fe73, clusters and means equal but for rounding ties"
    )

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
        graph = affinity(squared_distances(self.points(tokens)), self.sigma)
        rows = projector(graph, keep) if to_onnx() else eigenvectors(graph, keep)
        norm = rows.norm(dim=-1)
        rows = rows / norm.clamp_min(1e-6)[..., None]
        squared = squared_distances(rows)
        seeds = choose_seeds(squared, norm, mass, keep, self.seeding)
        if self.clusters == "kmeans":
            return self.merge(tokens, *k_means(rows, mass, seeds, self.iterations))
        return self.merge(tokens, *k_medoids(squared.sqrt(), mass, seeds, self.iterations))

    def work(self, step: Step) -> int:
        eigenvectors = step.n**3 * 9 // 2
        rows = step.n**2 * step.keep
        if self.clusters == "kmeans":
            rounds = k_means_work(step.n, step.keep, step.keep, self.iterations)
        else:
            rounds = self.iterations * step.n**2
        return self.comparing_work(step) + eigenvectors + rows + rounds


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
    # The largest of D^-1/2 W D^-1/2 are the smallest of I minus it.
    return torch.linalg.eigh(normalised(graph)).eigenvectors[:, :, -count:].flip(2)


def projector(graph: Tensor, count: int) -> Tensor:
    """`(B, N, N)`: U U^T of the `eigenvectors` U, whose rows have the norms and distances of those of U.

    For ONNX, which has no eigendecomposition: the purification of Niklasson (2002, Physical Review B 66, 155115) moves
    all eigenvalues to 0 or 1, each round with the polynomial that brings their sum closer to `count`.
    """

    def step(_: Tensor, x: Tensor) -> tuple[Tensor]:
        square = x @ x
        total, smaller = (matrix.diagonal(dim1=1, dim2=2).sum(1) for matrix in (x, square))
        shrinks = (smaller - count).abs() < (2 * total - smaller - count).abs()
        return (torch.where(shrinks[:, None, None], square, 2 * x - square),)

    # In fp64: the gap between the eigenvalues on either side is doubled by every second round, and so is rounding.
    itself = torch.eye(graph.shape[1], dtype=torch.float64, device=graph.device)
    return repeat(step, PURIFYING, (normalised(graph).double() + itself) / 2)[0].float()


def normalised(graph: Tensor) -> Tensor:
    """D^-1/2 W D^-1/2 of `graph (B, N, N)`, W, with the row sums D."""
    scale = graph.sum(-1).rsqrt()
    return scale[:, :, None] * graph * scale[:, None, :]

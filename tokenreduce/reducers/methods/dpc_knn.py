"""DPC-KNN: density-peak clustering of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.order import stable_order
from tokenreduce.reducers.checks import check_count
from tokenreduce.reducers.parts.clustering import Clustering
from tokenreduce.reducers.parts.clusters import NEIGHBOURS, density_peaks, join_nearest, squared_distances
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens


@register
@dataclass(frozen=True)
class DPCKNN(Clustering):
    """Merge every token into the nearest density peak (training-free part of a trained method).

    Zeng et al., "Not All Tokens Are Equal: Human-centric Visual Analysis via Token Clustering Transformer", CVPR 2022,
    arXiv 2204.08680. With distances `d_ij = |f_i - f_j| / sqrt(d)` of the points f `(B, N, d)`, the density rho is
    `exp(-mean d_ij^2)` over the k nearest tokens, itself included; delta is the distance to the nearest denser token,
    for the densest the largest distance of the image. The M tokens with the largest `log rho + log delta` are centres,
    every token joins its nearest one, a centre itself. Outputs stand in the order of their centres.

    Departures: logs, since rho underflows; equally dense tokens are ordered by index, where the published code adds
    noise below 1e-6 to all densities; the learned weights of the mean are the sizes here.

    Args:
        metric: "keys", or "features" for the residual stream, whose largest channels decide then.
        weights: what a token counts for in merging: its "size", or the "attention" it receives.
        neighbours: k.
    """

    neighbours: int = NEIGHBOURS

    name: ClassVar[str] = "dpc_knn"
    paper: ClassVar[str] = "arXiv 2204.08680"
    year: ClassVar[int] = 2022
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = (
        "zengwang430521/TCFormer@1ea72a8, JoakimHaurum/TokenReduction@88fe07e: equal but for their noise and rounding"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("neighbours", self.neighbours)

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        points = self.points(tokens)
        squared = squared_distances(points) / points.shape[-1]
        density, gap = density_peaks(squared, self.neighbours)
        score = density + 0.5 * gap.log()  # -inf for a copy of a denser token
        centres = stable_order(score, 1, descending=True)[:, :keep].sort(dim=1).values
        return self.merge(tokens, join_nearest(squared, centres), centres)

    def work(self, step: Step) -> int:
        return self.comparing_work(step)

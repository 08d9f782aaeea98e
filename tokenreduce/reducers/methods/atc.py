"""ATC: agglomerative clustering of the tokens, bottom up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.linkage import LINKAGES, agglomerate
from tokenreduce.reducers.checks import check_option
from tokenreduce.reducers.contract import EVERYWHERE, Reducer
from tokenreduce.reducers.parts.cosine import normalised
from tokenreduce.reducers.parts.labels import map_of_clusters
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens


@register
@dataclass(frozen=True)
class ATC(Reducer):
    """Agglomerative clustering: merge the two most similar clusters, again and again, until few enough are left.

    Haurum et al., "Agglomerative Token Clustering", ECCV 2024, arXiv 2409.11923. Distances `(B, N, N)` are 1 - cosine
    of the keys, mean over heads; each current token counts once, whatever its size. The distance of two clusters is
    that of their closest members ("single"), of their farthest ("complete"), the mean over all pairs ("average"), or
    the growth of the squared error that merging them would cause ("ward", our addition: on the squared Euclidean
    distances of normalised keys, which are 2 (1 - cosine)). Features are size-weighted means; clusters are ordered by
    their first member.

    A budget takes the same count from every block, as the paper does off the shelf; when fine-tuned it reduces in three
    stages.

    Departures: exactly `keep` clusters, where the released code for self-supervised models leaves one more; norms are
    clamped at 1e-6; equally close pairs merge in order of their first members. Runs on the CPU in numba where it is
    installed (`pip install tokenreduce[clustering]`), else and on a GPU in PyTorch with one round for each merge.

    Args:
        linkage: "average", "single", "complete" or "ward".
    """

    linkage: str = "average"

    name: ClassVar[str] = "atc"
    kind: ClassVar[str] = "clustering"
    paper: ClassVar[str] = "arXiv 2409.11923"
    year: ClassVar[int] = 2024
    places: ClassVar[frozenset[str]] = EVERYWHERE
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = "JoakimHaurum/ATC@227c94b: clusters and outputs equal"
    needs: ClassVar[frozenset[str]] = frozenset({"mean_keys"})

    def __post_init__(self) -> None:
        check_option("linkage", self.linkage, LINKAGES)

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        label = agglomerate(cosine_distance(tokens.mean_keys), keep, self.linkage)
        return map_of_clusters(label, keep)

    def work(self, step: Step) -> int:
        return step.n**2 * step.head_dim


def cosine_distance(metric: Tensor) -> Tensor:
    """1 - cosine of all pairs of `metric (B, N, d)`, norms clamped at 1e-6; 2 where it is not a number."""
    metric = metric.float()
    unit = normalised(metric)
    return (1 - unit @ unit.transpose(1, 2)).nan_to_num(nan=2.0)

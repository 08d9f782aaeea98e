"""DivPrune: keep the tokens that are farthest from each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from tokenreduce.maps.token_map import TokenMap, keep_tokens
from tokenreduce.ops.farthest_first import farthest_first
from tokenreduce.reducers.checks import check_option
from tokenreduce.reducers.contract import EVERYWHERE, Reducer
from tokenreduce.reducers.parts.clusters import squared_distances
from tokenreduce.reducers.parts.cosine import normalised
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens


@register
@dataclass(frozen=True)
class DivPrune(Reducer):
    """Keep the tokens whose least cosine distance to each other is large, whatever the prompt says, and drop the rest.

    Alvar et al., "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", CVPR 2025,
    arXiv 2503.02175. With distances `d_ij = 1 - cos(x_i, x_j)` of the features `(B, N, C)`, the first token kept is the
    one whose nearest other is farthest, `argmax_i min_{j != i} d_ij`; then again and again the one whose nearest kept
    token is farthest. Kept tokens stay in raster order.

    Made for what enters a language model; it runs in a vision transformer too, which the paper does not do. Departures:
    no token is chosen twice, also where all that are left are copies; of equals the lower index is kept. For restoring,
    a dropped token is stood for by the kept one at the least distance, which takes over its size.

    Args:
        inherit: the token that stands for a dropped one takes over its size in attention; a language model knows no
            sizes.
    """

    inherit: bool = True

    name: ClassVar[str] = "divprune"
    kind: ClassVar[str] = "pruning"
    paper: ClassVar[str] = "arXiv 2503.02175"
    year: ClassVar[int] = 2025
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = "its specification; vbdi/divprune@799e2d9, selections equal"
    shape: ClassVar[str] = "stages"
    places: ClassVar[frozenset[str]] = EVERYWHERE
    positions: ClassVar[str] = "renumber"

    def __post_init__(self) -> None:
        check_option("inherit", self.inherit, bool)

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        apart = squared_distances(normalised(tokens.features.float()))  # of directions: 2 - 2 cos
        itself = torch.eye(apart.shape[1], dtype=torch.bool, device=apart.device)
        first = apart.masked_fill(itself, float("inf")).amin(2).argmax(1)
        kept = farthest_first(apart, first, keep).sort(dim=1).values
        to_kept = apart.gather(2, kept[:, None, :].expand(-1, apart.shape[1], -1))
        return keep_tokens(kept, to_kept.argmin(2), self.inherit)

    def work(self, step: Step) -> int:
        return step.n**2 * step.width

"""MTR: the tokens with the shortest time steps merge into those with longer ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.order import stable_order
from tokenreduce.ops.rows import take
from tokenreduce.reducers.checks import check_option
from tokenreduce.reducers.contract import Reducer
from tokenreduce.reducers.parts.cosine import normalised
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens


@register
@dataclass(frozen=True)
class Mtr(Reducer):
    """Three groups by time step: the least important tokens merge into moderately important ones, the rest stay.

    Ma et al., "Training-free Token Reduction for Vision Mamba", arXiv 2507.14042. A token's importance is its time
    step, mean over channels and directions. The r least important are sources, the next `min(r, N - r)` targets; each
    source joins the target with the most similar features (cosine). Outputs stay in raster order, a merged token at the
    place of its target.

    Our reading: there is no released code, and the paper's layers, groups and similarity are known at second hand only.

    Args:
        weighted: a merged token is the mean of all input tokens in it; False: of the tokens that merge, each as one.
    """

    weighted: bool = False

    name: ClassVar[str] = "mtr"
    kind: ClassVar[str] = "merging"
    paper: ClassVar[str] = "arXiv 2507.14042"
    year: ClassVar[int] = 2025
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = "its specification; our reading of the paper, which has no released code"
    needs: ClassVar[frozenset[str]] = frozenset({"time_step"})
    shape: ClassVar[str] = "stages"
    scan_shape: ClassVar[str] = "stages"

    def __post_init__(self) -> None:
        check_option("weighted", self.weighted, bool)

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        batch, removed = tokens.features.shape[0], tokens.count - keep
        order = stable_order(tokens.time_step.float().mean(-1), 1)
        sources, target = order[:, :removed], order[:, removed : removed + min(removed, keep)]
        rep = order[:, removed:].sort(dim=1).values
        unit = normalised(tokens.features.float())
        scores = take(unit, sources) @ take(unit, target).transpose(1, 2)
        joins = target.gather(1, scores.argmax(-1))
        ranks = torch.arange(keep, device=rep.device).expand(batch, -1)
        dest = torch.zeros_like(order).scatter(1, rep, ranks)
        dest = dest.scatter(1, sources, dest.gather(1, joins))
        if self.weighted:
            return TokenMap(keep, dest=dest, rep=rep, sources=sources)
        # A token counts as one whatever it holds, and in a scan it takes no more steps for what joined it.
        each = None if tokens.sizes is None else 1 / tokens.sizes
        alone = torch.zeros_like(dest, dtype=torch.float32).scatter(1, rep, 1.0)
        return TokenMap(keep, dest=dest, rep=rep, sources=sources, weight=each, size_weight=alone)

    def work(self, step: Step) -> int:
        removed = step.n - step.keep
        return removed * min(removed, step.keep) * step.width

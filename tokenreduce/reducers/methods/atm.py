"""ATM: merge every pair above a threshold that falls with depth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.order import stable_order
from tokenreduce.ops.rows import take
from tokenreduce.reducers.checks import check_number, check_option
from tokenreduce.reducers.contract import Reducer
from tokenreduce.reducers.parts.bipartite import alternating, merge_best
from tokenreduce.reducers.parts.cosine import normalised
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens


@register
@dataclass(frozen=True)
class ATM(Reducer):
    """Merge all pairs of ToMe's bipartition whose similarity passes a threshold that falls with depth, and in late
    blocks only small tokens into large ones.

    Lee and Choi, "Adaptive Token Merging", arXiv 2505.15160, known to us through reviews. Threshold of block l,
    counted from 1: `max(alpha - (exp(beta (l - 1)) - 1), theta_min)`. Cosine of the keys `(B, N, d)`, mean over heads,
    and size-weighted means as in ToMe. In blocks l >= 2/3 of the depth the sources are the smaller half of the tokens
    and the targets the larger half, so that two large tokens never merge.

    Without a budget the number merged is decided once per batch: how many pairs pass, reduced over the images by
    `batch`; every image then merges its own best pairs. So a count depends on the other images of the batch.
    With a budget the best pairs of the same bipartition merge, whatever their similarity.

    Our definitions, since the paper is not confirmed: the metric, all default values, the count over a batch, and that
    tokens of equal size split as in ToMe, every second one a source (raster halves are known to match worse).

    Args:
        alpha: the threshold of the first block; a cosine, so that above 1 nothing merges.
        beta: how fast the threshold falls.
        theta_min: the lowest threshold.
        batch: how a batch agrees on the number merged without a budget: "mean", "min" or "max" over its images.
    """

    alpha: float = 0.95
    beta: float = 0.01
    theta_min: float = 0.8
    batch: str = "mean"

    name: ClassVar[str] = "atm"
    kind: ClassVar[str] = "merging"
    paper: ClassVar[str] = "arXiv 2505.15160"
    year: ClassVar[int] = 2025
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = "its specification; its authors published no code"
    needs: ClassVar[frozenset[str]] = frozenset({"mean_keys"})
    adaptive: ClassVar[bool] = True
    budgeted: ClassVar[str] = "merges the most similar pairs of the same bipartition; thresholds are not used"

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, -1, 2)
        check_number("beta", self.beta, 0, 1)
        check_number("theta_min", self.theta_min, -1, 2)
        check_option("batch", self.batch, ("mean", "min", "max"))

    def least(self, n: int) -> int:
        return n - n // 2

    def threshold(self, layer: int) -> float:
        """The similarity that a pair must pass in the 0-based `layer`."""
        return max(self.alpha - math.expm1(self.beta * layer), self.theta_min)

    def decide(self, tokens: Tokens, state: Any = None) -> int:
        n = tokens.count
        if n < 2:
            return n
        best, *_ = self._matches(tokens)
        passed = (best > self.threshold(tokens.layer)).sum(1).tolist()
        mean = (2 * sum(passed) + len(passed)) // (2 * len(passed))  # rounded half up
        removed = {"mean": mean, "min": min(passed), "max": max(passed)}[self.batch]
        return max(n - removed, self.least(n))

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        return merge_best(*self._matches(tokens), keep)

    def work(self, step: Step) -> int:
        return step.bipartite(step.head_dim)

    def _matches(self, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Every source's best score and match, and the places of sources and targets, as `merge_best` takes them."""
        unit = normalised(tokens.mean_keys)
        sources, targets = alternating(unit, tokens.prefix % 2)
        if 3 * (tokens.layer + 1) >= 2 * tokens.depth and tokens.sizes is not None:
            order = torch.cat([sources, targets], 1)
            order = order.gather(1, stable_order(tokens.sizes.gather(1, order), 1))
            half = tokens.count // 2
            sources, targets = order[:, :half].sort(dim=1).values, order[:, half:].sort(dim=1).values
        best, match = (take(unit, sources) @ take(unit, targets).transpose(1, 2)).max(-1)
        return best, match, sources, targets

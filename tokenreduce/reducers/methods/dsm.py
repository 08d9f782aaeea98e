"""DSM: start merging late, first inside windows of the grid, then anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenreduce.errors import InvalidValueError
from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.constants import counting
from tokenreduce.ops.order import stable_order
from tokenreduce.reducers.checks import check_number, check_option
from tokenreduce.reducers.contract import Reducer
from tokenreduce.reducers.parts.bipartite import alternating, alternating_scores, match_bipartite, merge_best
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens


@register
@dataclass(frozen=True)
class DSM(Reducer):
    """ToMe that starts late, at a third of the depth if the budget allows, merges inside windows of the grid first and
    globally in the last third.

    Heo et al., "Training-Free Acceleration of ViTs with Delayed Spatial Merging", ICML 2024 workshop ES-FoMo, arXiv
    2303.02331. Metric, bipartition and size-weighted means as in ToMe. The delay is the schedule's: a budget of shape
    "delayed" touches only the blocks from depth // 3 on (`layers` or `schedule` may say otherwise), and starts earlier
    where a budget in multiply-adds would leave less than a sixth of the tokens; the published delays shrink with the
    budget too. Until the middle of the blocks after depth // 3 tokens merge only if their mean places `(B, N, 2)` lie
    in the same window.

    The windows are equal parts of the grid, two along each side. In the README of the paper's first version each merges
    a quarter of what a block merges: `even`. Then windows take turns, each with its most similar pair left, so that a
    number that four does not divide goes to the windows with the best next pairs. Not the default: on DINOv2 it makes
    the class error larger.

    Our definitions, since the paper is not confirmed: the bipartition, which is that of all tokens, the length of both
    phases, and what happens where too few sources have a partner in their window: those without one follow after all
    others, with their best partner anywhere.

    Args:
        windows: windows along each side of the grid; 1 merges globally in all blocks.
        even: every window merges as many; False: the best pairs of all windows merge, wherever they lie.
    """

    windows: int = 2
    even: bool = False

    name: ClassVar[str] = "dsm"
    kind: ClassVar[str] = "merging"
    paper: ClassVar[str] = "arXiv 2303.02331"
    year: ClassVar[int] = 2024
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = "its specification; johnheo/fast-compress-vit@fe9cfe7 holds no code"
    needs: ClassVar[frozenset[str]] = frozenset({"mean_keys", "positions", "grid"})
    shape: ClassVar[str] = "delayed"

    def __post_init__(self) -> None:
        check_option("windows", self.windows, int)
        check_number("windows", self.windows, 1)
        check_option("even", self.even, bool)

    def least(self, n: int) -> int:
        return n - n // 2

    def required(self) -> frozenset[str]:
        return self.needs if self.windows > 1 else frozenset({"mean_keys"})

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        metric, first, delay = tokens.mean_keys, tokens.prefix % 2, tokens.depth // 3
        if self.windows == 1 or tokens.layer >= delay + (tokens.depth - delay) // 2:
            return match_bipartite(metric, keep, first)
        window = self._window(tokens)
        scores = alternating_scores(metric, first)
        apart = window[:, first::2, None] != window[:, None, 1 - first :: 2]
        near, near_match = scores.masked_fill(apart, -torch.inf).max(-1)
        far, far_match = scores.max(-1)
        alone = near.isinf()
        # A cosine less 3 lies below every cosine: sources without a partner in their window come last.
        best, match = torch.where(alone, far - 3, near), torch.where(alone, far_match, near_match)
        if self.even:
            best = by_turns(best, window[:, first::2], alone)
        return merge_best(best, match, *alternating(metric, first), keep)

    def work(self, step: Step) -> int:
        return step.bipartite(step.head_dim)

    def _window(self, tokens: Tokens) -> Tensor:
        """The window of each token `(B, N)`, as a whole number."""
        if tokens.grid is None:
            raise InvalidValueError(
                "dsm needs the tokens to come from a grid (H, W), but here is none; patch dropout in training takes it "
                "away: use windows=1, another method, or eval()"
            )
        places = tokens.positions
        window = torch.zeros_like(places[..., 0])
        for axis, side in enumerate(tokens.grid):
            window = window * self.windows + (places[..., axis] * self.windows / side).floor()
        return window


def by_turns(best: Tensor, window: Tensor, alone: Tensor) -> Tensor:
    """Scores `(B, A)` that sort sources by their rank inside their `window (B, A)` first, then by `best (B, A)`.

    Sources that are `alone (B, A)` come last; their `best` lies below that of all others.
    """
    place = counting(best.shape[1], best.device)
    order = stable_order(best, 1, descending=True)
    window, alone = window.gather(1, order), alone.gather(1, order)
    together = (window[:, :, None] == window[:, None, :]) & (place < place[:, None])
    turn = together.sum(-1).masked_fill(alone, best.shape[1])
    order = order.gather(1, stable_order(turn, 1))
    return torch.zeros_like(best).scatter(1, order, -place.to(best.dtype).expand_as(best))

"""VFlowOpt: keep the tokens that receive most attention in the vision tower, and one for the others of each cell."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.order import stable_order
from tokenreduce.reducers.checks import check_count
from tokenreduce.reducers.contract import Reducer
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens

LEAST = 1e-12  # of a weight


@register
@dataclass(frozen=True)
class VFlowOpt(Reducer):
    """Keep tokens that receive most attention in the vision tower, and of the others one for each cell of the grid.

    Yang et al., "VFlowOpt: A Token Pruning Framework for LMMs with Visual Information Flow-Guided Optimization",
    ICCV 2025, arXiv 2508.05211; of it the recycling. In order of their importance, `mean_{h,i} A[h, i, j]`, tokens are
    kept; those that are not become one in each cell of `cell` x `cell` places that holds any: their mean, weighted by
    importance, at the place of the most important one. As many are kept as make the count exact. Where tokens have left
    before, places are not known, and all that leave become one.

    Not here: the search for layers, shares and cells by Bayesian optimisation (`calibrate` has one for shares), the
    calibration of importance by the tokens that receive most, the entropy of patches, whose weight is 0 in all settings
    of the authors, and recycling within the language model.

    Args:
        cell: its side in tokens; the authors found 12 to 17 of 27 for three budgets.
    """

    cell: int = 12

    name: ClassVar[str] = "vflowopt"
    kind: ClassVar[str] = "merging"
    paper: ClassVar[str] = "arXiv 2508.05211"
    year: ClassVar[int] = 2025
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = "its specification; sihany077/VFlowOpt@129eeef, recycling equal"
    needs: ClassVar[frozenset[str]] = frozenset({"received_attention", "grid"})
    shape: ClassVar[str] = "first"
    places: ClassVar[frozenset[str]] = frozenset({"language"})

    def __post_init__(self) -> None:
        check_count("cell", self.cell)

    def least_of(self, n: int, grid: tuple[int, ...] | None) -> int:
        if grid is None or math.prod(grid) != n:
            return 1
        return math.prod(-(-side // self.cell) for side in grid[-2:]) * math.prod(grid[:-2])

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        assert tokens.grid is not None  # it is needed
        weight = tokens.received_attention.mean(1)
        if math.prod(tokens.grid) == tokens.count:
            cells = cells_of(tokens.grid, self.cell, weight.device).expand_as(weight)
        else:
            cells = torch.zeros_like(weight, dtype=torch.long)
        place = stable_order(stable_order(weight, 1, descending=True), 1)  # of each token in the order of importance
        # A cell has an output of its own until the token of it that comes last is kept too.
        last = torch.zeros_like(place).scatter_reduce(1, cells, place, "amax").gather(1, cells)
        whole = torch.zeros_like(place).scatter(1, place, (last == place).long()).cumsum(1)
        kept = torch.arange(1, tokens.count + 1, device=weight.device)
        outputs = kept + self.least_of(tokens.count, tokens.grid) - whole
        kept_first = (outputs <= keep).sum(1, keepdim=True)
        return recycled(weight, cells, place, kept_first, keep)

    def work(self, step: Step) -> int:
        return step.attention


def cells_of(grid: tuple[int, ...], side: int, device: torch.device) -> Tensor:
    """`(N,)`: the number of the cell of each token, of a grid `(H, W)` or `(T, H, W)`; a cell is in one frame."""
    across = -(-grid[-1] // side)
    rows, columns = (torch.arange(length, device=device) // side for length in grid[-2:])
    one = (rows[:, None] * across + columns).flatten()
    frames = torch.arange(math.prod(grid[:-2]), device=device)
    return (frames[:, None] * (one[-1] + 1) + one).flatten()


def recycled(weight: Tensor, cells: Tensor, place: Tensor, kept_first: Tensor, keep: int) -> TokenMap:
    """The map that keeps the first `kept_first (B, 1)` tokens by `place (B, N)`, and one for what is left of each cell:
    `keep` in all."""
    n = weight.shape[1]
    kept = place < kept_first
    # What is left of a cell is stood for by its most important token.
    leads = torch.full_like(place, n).scatter_reduce(1, cells, place.masked_fill(kept, n), "amin").gather(1, cells)
    stays = kept | (leads == place)
    rep = stay_order(stays, keep)
    number = torch.zeros_like(place).scatter(1, rep, torch.arange(keep, device=place.device).expand_as(rep))
    at = torch.zeros_like(place).scatter(1, place, torch.arange(n, device=place.device).expand_as(place))
    lead = at.gather(1, leads.clamp_max(n - 1))
    dest = torch.where(stays, number, number.gather(1, lead))
    return TokenMap(keep, dest=dest, weight=weight.clamp_min(LEAST), size_weight=torch.ones_like(weight), rep=rep)


def stay_order(stays: Tensor, keep: int) -> Tensor:
    """`(B, keep)`: the tokens that stay, in their order."""
    return stable_order((~stays).long(), 1)[:, :keep]

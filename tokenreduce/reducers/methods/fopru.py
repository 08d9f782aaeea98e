"""FoPru: keep the tokens that receive most attention in the vision tower, alone or in whole rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.order import stable_order
from tokenreduce.reducers.checks import check_option
from tokenreduce.reducers.contract import Reducer
from tokenreduce.reducers.parts.highest import keep_highest
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens

RANK, ROW = "rank", "row"


@register
@dataclass(frozen=True)
class FoPru(Reducer):
    """Before a language model, keep the tokens that receive most attention in the vision tower, and drop the rest.

    Jiang et al., "FoPru: Focal Pruning for Efficient Large Vision-Language Models", arXiv 2411.14164. The score
    `(B, N)` of a token is `mean_{h,i} A[h, i, j]`, what it receives in the layer of the tower whose output the language
    model gets. Kept tokens stay in raster order; of equal scores the lower index is kept.

    Not confirmed, as the paper's code was not read: the layer, and that the score is what is received, not what the
    class token gives. Departure: counts are exact, so that of the last row that `row` keeps only the best tokens stay.

    Args:
        strategy: "rank" keeps single tokens, "row" whole rows by the sum of their scores, which suits text in images;
            where tokens have left before, single ones.
    """

    strategy: str = RANK

    name: ClassVar[str] = "fopru"
    kind: ClassVar[str] = "pruning"
    paper: ClassVar[str] = "arXiv 2411.14164"
    year: ClassVar[int] = 2024
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = "its specification"
    needs: ClassVar[frozenset[str]] = frozenset({"received_attention"})
    shape: ClassVar[str] = "first"
    places: ClassVar[frozenset[str]] = frozenset({"language"})
    positions: ClassVar[str] = "renumber"

    def __post_init__(self) -> None:
        check_option("strategy", self.strategy, (RANK, ROW))

    def required(self) -> frozenset[str]:
        return self.needs if self.strategy == RANK else self.needs | {"grid"}

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        score = tokens.received_attention.mean(1)
        if self.strategy == ROW and tokens.grid is not None and math.prod(tokens.grid) == tokens.count:
            score = of_rows(score, tokens.grid[-1])
        return keep_highest(score, keep)

    def work(self, step: Step) -> int:
        return step.attention


def of_rows(score: Tensor, width: int) -> Tensor:
    """Scores that order tokens by the sum of their row of the grid first, and then by their own `score (B, N)`."""
    within = rank(score)
    sums = score.unflatten(1, (-1, width)).sum(2)
    rows = rank(sums).repeat_interleave(width, 1)
    return rows * score.shape[1] + within


def rank(score: Tensor) -> Tensor:
    """Whole numbers in the order of `score (B, N)`, all different: of equals the lower index has the higher."""
    return -stable_order(stable_order(score, 1, descending=True), 1)

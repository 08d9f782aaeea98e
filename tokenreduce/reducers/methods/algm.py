"""ALGM: merge 2 x 2 windows early, similar pairs anywhere in the middle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenreduce.errors import InvalidValueError
from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.constants import constant, counting
from tokenreduce.ops.order import stable_order
from tokenreduce.ops.rows import take
from tokenreduce.ops.tracing import computed_once
from tokenreduce.reducers.checks import check_number
from tokenreduce.reducers.contract import Reducer
from tokenreduce.reducers.parts.bipartite import alternating_scores, match_bipartite
from tokenreduce.reducers.parts.cosine import normalised
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens


@register
@dataclass(frozen=True)
class ALGM(Reducer):
    """Merge uniform 2 x 2 windows of the grid in the first block and similar tokens anywhere at a third of the depth
    (training-free part of a trained method).

    Norouzi et al., "ALGM: Adaptive Local-then-Global Token Merging for Efficient Semantic Segmentation with Plain
    Vision Transformers", CVPR 2024, arXiv 2406.09936. Both steps compare residual tokens `(B, N, C)` by cosine and
    merge to size-weighted means. Local: a window's score is the mean cosine of its pairs, and windows with at least
    tau become one token each; output order is merged windows by score, then all others in raster order. Global: ToMe's
    bipartition; a source merges if its best cosine reaches the mean of these over the batch plus their standard
    deviation (of a sample) / l, with l the block counted from 1.

    Without a budget every image of a batch removes as many tokens as the one that qualifies for fewest, and the global
    threshold is taken over the batch: counts depend on the batch, as in the paper's code. With a budget the best
    windows merge until the count is met, the last one in part (those of its tokens most similar to its top left one),
    or the best pairs do.

    Departures: windows at the border of an odd grid are smaller and take part as the others do (the paper's grids are
    even); the local step runs before a third of the depth if the tokens still are the grid, so that the second step is
    global also when the first merged nothing; a budget below what
    one step can leave continues with a global step on its result; in models of 24 blocks the second step comes at a
    third of the depth too (the paper: block 7).

    Args:
        tau: score from which a window is merged without a budget. The paper uses 0.88 to 0.95, by model and data set.
    """

    tau: float = 0.88

    name: ClassVar[str] = "algm"
    kind: ClassVar[str] = "merging"
    paper: ClassVar[str] = "arXiv 2406.09936"
    year: ClassVar[int] = 2024
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = "tue-mps/algm-segmenter@674eaa2: counts, selections and outputs equal"
    needs: ClassVar[frozenset[str]] = frozenset({"grid"})
    shape: ClassVar[str] = "first_and_third"
    scan_shape: ClassVar[str] = "first_and_third"
    adaptive: ClassVar[bool] = True
    budgeted: ClassVar[str] = "merges the most uniform windows, then the most similar pairs; thresholds are not used"

    def __post_init__(self) -> None:
        check_number("tau", self.tau, -1, 2)

    def least(self, n: int) -> int:
        # Each step halves at least (2 x 2 windows of a grid of one row hold two cells), and `plan` may take two.
        return (n + 3) // 4

    def deciding_layers(self, depth: int) -> tuple[int, ...]:
        return tuple(sorted({0, depth // 3}))

    def decide(self, tokens: Tokens, state: Any = None) -> int:
        n, layer = tokens.count, tokens.layer + 1
        if n < 2:
            return n
        if is_local(tokens):
            gram, inside = window_cosines(tokens)
            removed = ((scores(gram, inside) >= self.tau) * (inside.sum(1) - 1)).sum(1)
            return n - int(removed.min())
        best = alternating_scores(tokens.features.float(), tokens.prefix % 2).amax(-1)
        threshold = best.mean() + best.std(1, correction=min(1, best.shape[1] - 1)).mean() / layer  # 0 of one source
        # The mean of equal values may lie an ulp above them.
        count = int((best >= threshold - 1e-6).sum(1).min())
        return n - min(count, n // 2)

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        n, first = tokens.count, tokens.prefix % 2
        if is_local(tokens):
            height, width = grid_of(tokens)
            reached = max(keep, (height + 1) // 2 * ((width + 1) // 2))
            step = merge_windows(tokens, reached)
        else:
            reached = max(keep, n - n // 2)
            step = match_bipartite(tokens.features.float(), reached, first)
        if reached == keep:
            return step
        return step.compose(match_bipartite(step.apply(tokens.features.float(), tokens.sizes), keep, first))

    def work(self, step: Step) -> int:
        height, width = step.grid
        reached, compared = step.n - step.n // 2, step.bipartite(step.width)
        if windows_merge(step.layer, step.depth, step.n, step.grid):
            reached = (height + 1) // 2 * ((width + 1) // 2)
            windows = reached - height % 2 * (width % 2)  # all but a single cell in the corner
            compared = windows * 4 * 4 * step.width
        return compared + (step.bipartite(step.width, reached) if step.keep < reached else 0)


def is_local(tokens: Tokens) -> bool:
    """Whether windows merge here."""
    return windows_merge(tokens.layer, tokens.depth, tokens.count, grid_of(tokens))


def windows_merge(layer: int, depth: int, n: int, grid: tuple[int, ...]) -> bool:
    """Whether windows merge: before a third of the depth, while the tokens are the grid."""
    return layer < max(1, depth // 3) and n == grid[0] * grid[1]


def merge_windows(tokens: Tokens, keep: int) -> TokenMap:
    """The map that merges the windows with the best scores, the last one in part, until `keep` tokens are left."""
    batch, n, device = tokens.features.shape[0], tokens.count, tokens.features.device
    table = window_table(tokens)
    gram, inside = window_cosines(tokens)
    order = stable_order(scores(gram, inside), 1, descending=True)
    cells = (inside.sum(1) - 1).expand(batch, -1).gather(1, order)
    taken = (n - keep - (cells.cumsum(1) - cells)).clamp_min(0).minimum(cells)
    taken = torch.zeros_like(order).scatter(1, order, taken)
    # Inside a window the cells most similar to its first one merge first; padding comes last.
    similar = gram[:, :, 0, 1:].masked_fill(~inside[:, 1:], -torch.inf)
    rank = stable_order(similar, -1, descending=True).argsort(dim=-1)
    moves = counting(1, device).expand(batch, n)
    moves = moves.scatter(1, table[:, 1:].reshape(1, -1).expand(batch, -1), (rank < taken[..., None]).long().flatten(1))
    # Places in the output: merged windows by score, other tokens in raster order, then those that moved.
    own = counting(n, device)
    windows = order.shape[1]
    by_score = torch.zeros_like(order).scatter(1, order, counting(windows, device).expand(batch, -1))
    front = table[:, 0].expand(batch, -1)
    key = (moves * n + own + windows).scatter(1, front, torch.where(taken > 0, by_score, front + windows))
    places = key.argsort(dim=1)
    ranks = torch.zeros_like(places).scatter(1, places, own.expand(batch, -1))
    corner = constant(corners(*grid_of(tokens)), device)
    dest = ranks.gather(1, torch.where(moves > 0, corner, own))
    return TokenMap(keep, dest=dest, rep=places[:, :keep], sources=places[:, keep:])


def window_cosines(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Cosines in each window of two cells or more, `(B, W, 4, 4)`, and which of its four places `(W, 4)` it has."""
    table = window_table(tokens)
    unit = take(normalised(tokens.features.float()), table.reshape(1, -1).expand(tokens.features.shape[0], -1))
    unit = unit.unflatten(1, (table.shape[0], 4))
    inside = (table != table[:, :1]) | (counting(4, table.device) == 0)
    return unit @ unit.transpose(-1, -2), inside


def scores(gram: Tensor, inside: Tensor) -> Tensor:
    """The mean cosine of the pairs of each window, `(B, W)`."""
    pairs = (inside[:, :, None] & inside[:, None]).float().triu(1)
    return (gram * pairs).sum((-1, -2)) / pairs.sum((-1, -2))


def grid_of(tokens: Tokens) -> tuple[int, int]:
    """The input's `(H, W)`."""
    if tokens.grid is None or len(tokens.grid) != 2:
        raise InvalidValueError(
            f"algm needs the tokens to come from a grid (H, W), not {tokens.grid}; patch dropout in training takes the "
            "grid away: use another method, or eval()"
        )
    return tokens.grid[0], tokens.grid[1]


def window_table(tokens: Tokens) -> Tensor:
    """The cells of each window of two or more, top left first, `(W, 4)`; smaller ones repeat their first cell."""
    return constant(window_cells(*grid_of(tokens)), tokens.features.device).view(-1, 4)


@computed_once
def window_cells(height: int, width: int) -> tuple[int, ...]:
    """The entries of `window_table`, row by row."""
    out: list[int] = []
    for y in range(0, height, 2):
        for x in range(0, width, 2):
            cells = [b * width + a for b in (y, y + 1) for a in (x, x + 1) if b < height and a < width]
            out += (cells + cells[:1] * 3)[:4] if len(cells) > 1 else []
    return tuple(out)


@computed_once
def corners(height: int, width: int) -> tuple[int, ...]:
    """The top left cell of each cell's window."""
    return tuple(y // 2 * 2 * width + x // 2 * 2 for y in range(height) for x in range(width))

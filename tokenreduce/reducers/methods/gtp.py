"""GTP: drop tokens that others can rebuild, after giving a part of each to its neighbours in a graph."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenreduce.errors import InvalidValueError
from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.constants import counting
from tokenreduce.ops.order import stable_order
from tokenreduce.ops.rows import between, summing, take, with_protected
from tokenreduce.ops.tracing import exporting
from tokenreduce.reducers.checks import check_count, check_option
from tokenreduce.reducers.contract import Reducer
from tokenreduce.reducers.parts.cosine import normalised
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens

STATISTICS = {
    "mixed": ("received_attention", "own_attention"),
    "broadcast": ("received_attention",),
    "regeneration": ("own_attention",),
    "class": ("class_attention",),
}


@register
@dataclass(frozen=True)
class GTP(Reducer):
    """Drop the tokens that attend least to themselves and are attended least, and add a part of each to its neighbours.

    Xu et al., "GTP-ViT: Efficient Vision Transformers via Graph-based Token Propagation", WACV 2024, arXiv 2311.03035.
    The graph is made once, of the tokens that enter the first block: adjacency `(B, N0, N0)`, spatial (the 8 cells
    around a cell), semantic (the most similar tokens by cosine, directed) or both, normalised as
    `G = D^-1/2 A D^-1/2` with the row sums D; reduced tokens keep their nodes. In a block with attention `P (B, H, N,
    N)` token j has the score `max_h P[h, j, j] * max_h sum_i P[h, i, j]`, protected queries counted. The `keep` best
    stay, best first, and `x_kept += alpha * G[kept, dropped] x_dropped`, without division; sizes likewise.

    Departures: the attention sparsification (theta) is left out, since it changes the attention itself and saves
    nothing; a node without neighbours counts as degree 1 instead of dividing by zero; any grid. The original keeps
    scales off unless asked; here they are on, as in its published settings. Restoring is our definition: a dropped
    token is the mean of the kept tokens it was given to, weighted by G; without any, the nearest kept one on the grid
    (or in the sequence, without a grid), of equally near ones the one with the best score.

    A dropped token hands on a tenth of a row of G, so sizes grow by about a hundredth: where attention has to count
    sizes, this is a pruning method. `inherit=True` lets a dropped token count in full.

    Args:
        graph: "mixed", "spatial" or "semantic"; only the last works without a grid.
        neighbours: out-degree of the semantic graph.
        alpha: the part of a dropped token that is propagated.
        scales: let sizes grow by what a token received, so that attention counts it; False: all stay 1.
        inherit: let them grow by all that a dropped token counted instead, so that no attention is lost; it goes to
            those that stand for it when restoring.
        selection: "mixed", "broadcast" (only the sum), "regeneration" (only the diagonal) or "class" (class attention).
        heads: "max" or "mean" over heads; "class" is always a mean.
    """

    graph: str = "mixed"
    neighbours: int = 8
    alpha: float = 0.1
    scales: bool = True
    selection: str = "mixed"
    heads: str = "max"
    inherit: bool = False

    name: ClassVar[str] = "gtp"
    kind: ClassVar[str] = "propagation"
    paper: ClassVar[str] = "arXiv 2311.03035"
    year: ClassVar[int] = 2024
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = "its specification; Ackesnal/GTP-ViT@97a1178, selections and outputs equal"
    pooling: ClassVar[str] = "soft"
    modes: ClassVar[tuple[str, ...]] = ("copy", "soft", "freeze", "delta")
    needs: ClassVar[frozenset[str]] = frozenset({"received_attention", "own_attention", "origin", "grid"})

    def __post_init__(self) -> None:
        check_option("graph", self.graph, ("mixed", "spatial", "semantic"))
        check_count("neighbours", self.neighbours)
        check_option("alpha", float(self.alpha) if type(self.alpha) is int else self.alpha, float)
        check_option("scales", self.scales, bool)
        check_option("selection", self.selection, tuple(STATISTICS))
        check_option("heads", self.heads, ("max", "mean"))
        check_option("inherit", self.inherit, bool)
        if not 0 <= self.alpha < math.inf:
            raise InvalidValueError(f"option alpha is {self.alpha}; it must be 0 or more and finite")

    def required(self) -> frozenset[str]:
        grid = () if self.graph == "semantic" else ("grid",)
        return frozenset({*STATISTICS[self.selection], "origin", *grid})

    def begin(self, tokens: Tokens) -> Tensor:
        """The graph `G^T (B, N0, N0)`: row j has the weights with which the other nodes have j as a neighbour."""
        n, batch, device = tokens.count, tokens.features.shape[0], tokens.features.device
        if self.graph == "semantic":
            adjacent = semantic_graph(tokens.features.float(), self.neighbours)
        else:
            adjacent = spatial_graph(n, tokens.grid, device).expand(batch, -1, -1)
        if self.graph == "mixed":
            adjacent = adjacent | semantic_graph(tokens.features.float(), self.neighbours)
        scale = adjacent.sum(-1).clamp_min(1).float().rsqrt()
        return (adjacent * scale[:, :, None] * scale[:, None, :]).transpose(1, 2).contiguous()

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        order = stable_order(self._score(tokens), 1, descending=True)
        nodes = tokens.origin.gather(1, order)
        links = take(state, nodes[:, keep:])
        links = links.gather(2, nodes[:, None, :keep].expand(-1, links.shape[1], -1))
        return Propagation(order, nodes, links, tokens.grid, alpha=self.alpha, scales=self.scales, inherit=self.inherit)

    def state_work(self, step: Step) -> int:
        return 0 if self.graph == "spatial" else step.n**2 * step.width

    def work(self, step: Step) -> int:
        score = step.class_attention if self.selection == "class" else step.attention
        undoing = step.n * step.keep * step.width if step.undone else 0
        return score + step.keep * (step.n - step.keep) * step.width + undoing

    def _score(self, tokens: Tokens) -> Tensor:
        """`(B, N)`: what stays has the highest."""
        score: Tensor | None = None
        for name in STATISTICS[self.selection]:
            part: Tensor = getattr(tokens, name).float()
            if part.ndim == 3:
                part = part.amax(1) if self.heads == "max" else part.mean(1)
            score = part if score is None else score * part
        assert score is not None
        return score


class Propagation(TokenMap):
    """The map that keeps the first M of `order (B, N)` and adds to them what the P others give, without division.

    Its matrices are made when asked for: applying needs no more than `given (B, M, P)`.

    Args:
        nodes: `(B, N)`, the cell of the grid of each of `order`.
        links: `(B, P, M)`, the weight of those that go for those that stay.
        grid: that of the nodes, or None for a sequence.
        alpha: the part of a token that is given.
        scales: whether sizes are given as well.
        inherit: whether they are given whole, whatever `alpha`, to those that stand for the token when restoring.
    """

    rep: Tensor
    sources: Tensor

    def __init__(
        self,
        order: Tensor,
        nodes: Tensor,
        links: Tensor,
        grid: tuple[int, ...] | None,
        *,
        alpha: float,
        scales: bool,
        inherit: bool = False,
    ) -> None:
        self.count, self.drops, self.divide = links.shape[2], not (scales or inherit), False
        self.inherit = inherit
        self.dest = self.weight = self.size_weight = self.gain = self.grid = None
        self.order, self.nodes, self.links, self.node_grid = order, nodes, links, grid
        self.rep, self.sources = order[:, : self.count], order[:, self.count :]
        self.given = (links * alpha).transpose(1, 2)

    @property
    def entered(self) -> int:
        return self.order.shape[1]

    @property
    def batch(self) -> int:
        return self.order.shape[0]

    @property
    def share(self) -> Tensor:  # type: ignore[override]
        return in_order(self.given.transpose(1, 2), self.order).transpose(1, 2)

    @property
    def undo(self) -> Tensor:  # type: ignore[override]
        return in_order(self.stands_for(), self.order)

    def stands_for(self) -> Tensor:
        """`(B, P, M)`: by which parts those that stay stand for those that go."""
        kept, dropped = self.nodes[:, : self.count], self.nodes[:, self.count :]
        total = self.links.sum(-1, keepdim=True)
        nearest = nearest_nodes(dropped, kept, self.node_grid)
        return torch.where(total > 0, self.links / total.clamp_min(1e-12), nearest)

    def apply(self, x: Tensor, sizes: Tensor | None = None, prefix: int = 0, suffix: int = 0) -> Tensor:
        out = take(x, with_protected(self.rep, prefix, x.shape[1] - suffix, suffix))
        image, moved = between(out, prefix, suffix), summing(take(x, self.sources + prefix))
        # Added in place, batches whose rows do not follow each other would be multiplied one by one.
        spread = torch.baddbmm(image.to(moved.dtype), self.given.to(moved.dtype), moved)
        if exporting():
            return torch.cat([out[:, :prefix], spread.to(out.dtype), out[:, prefix + self.count :]], 1)
        image.copy_(spread)
        return out

    def sizes(self, sizes: Tensor | None = None) -> Tensor:
        if sizes is None:
            sizes = torch.ones(self.order.shape, dtype=torch.float32, device=self.order.device)
        kept = sizes.gather(1, self.rep)
        if self.drops:
            return kept
        given = self.stands_for().transpose(1, 2) if self.inherit else self.given
        return torch.baddbmm(kept[..., None], given, sizes.gather(1, self.sources)[..., None])[..., 0]


def spatial_graph(n: int, grid: tuple[int, ...] | None, device: torch.device) -> Tensor:
    """Whether cells `(N, N)` touch, corners included; of the grid."""
    if grid is None or len(grid) != 2 or grid[0] * grid[1] != n:
        raise InvalidValueError(
            f"gtp needs the tokens to be a grid (H, W), but there are {n} in a grid {grid}; "
            'use graph="semantic" (patch dropout in training takes the grid away)'
        )
    rows, columns = places(counting(n, device), grid[1])
    far = (rows[:, None] - rows).abs().maximum((columns[:, None] - columns).abs())
    return far == 1


def semantic_graph(x: Tensor, neighbours: int) -> Tensor:
    """`(B, N, N)`: whether j is one of the `neighbours` tokens most similar to i, ties to the lower index."""
    n = x.shape[1]
    unit = normalised(x)
    itself = torch.eye(n, dtype=torch.bool, device=x.device)
    similarity = (unit @ unit.transpose(1, 2)).masked_fill(itself, -math.inf)
    for _ in range(min(neighbours, n - 1)):  # faster than a stable sort, and argmax takes the first of equals
        similarity.scatter_(2, similarity.argmax(-1, keepdim=True), -math.inf)
    return similarity.isneginf() & ~itself


def nearest_nodes(dropped: Tensor, kept: Tensor, grid: tuple[int, ...] | None) -> Tensor:
    """`(B, P, M)`: 1 for the node of `kept (B, M)` that lies nearest to that of `dropped (B, P)`, the first of
    equals."""
    (y, x), (rows, columns) = (places(index, None if grid is None else grid[-1]) for index in (dropped, kept))
    distance = (y[:, :, None] - rows[:, None, :]) ** 2 + (x[:, :, None] - columns[:, None, :]) ** 2
    return (counting(kept.shape[1], kept.device) == distance.argmin(-1, keepdim=True)).float()


def places(index: Tensor, width: int | None) -> tuple[Tensor, Tensor]:
    """Row and column of the cells `index` in a grid `width` wide; None: all in one row."""
    return (index // width, index % width) if width is not None else (torch.zeros_like(index), index)


def in_order(dropped: Tensor, order: Tensor) -> Tensor:
    """`(B, N, M)` with a row for each token: `dropped (B, N - M, M)` for the last of `order`, one-hot for the first."""
    batch, _, keep = dropped.shape
    one_hot = torch.eye(keep, dtype=dropped.dtype, device=dropped.device).expand(batch, -1, -1)
    ranks = torch.zeros_like(order).scatter(1, order, counting(order.shape[1], order.device).expand_as(order))
    return take(torch.cat([one_hot, dropped], 1), ranks)

"""The map of a bipartite matching made by counting, for a GPU: few launches, and lists of tokens only where asked."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.maps.lazy import when_asked
from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.constants import counting
from tokenreduce.ops.order import stable_order


class Bipartition(TokenMap):
    """The map that merges those of every second token that come first, each into its match, as `merge_best` does.

    Args:
        rank: `(B, A)`, the place of every source among the sources, the best first.
        match: `(B, A)`, which of the targets it would merge into.
        entered: N, the sources and the targets.
        keep: tokens left.
        first: index of the first source.
    """

    def __init__(self, rank: Tensor, match: Tensor, entered: int, keep: int, first: int) -> None:
        self.count, self.drops, self.divide = keep, False, True
        self.share = self.weight = self.size_weight = self.gain = self.undo = self.grid = None
        self.rank, self.tokens, self.first = rank, entered, first
        self.merged = entered - keep
        self.kept = rank.shape[1] - self.merged
        self.stays = rank >= self.merged
        # Outputs from 1 on, which saves a launch: the sources that stay, in their order, then the targets.
        self.slots = torch.where(self.stays, self.stays.cumsum(1), match + (self.kept + 1))

    @property
    def entered(self) -> int:
        return self.tokens

    @property
    def batch(self) -> int:
        return self.slots.shape[0]

    @when_asked
    def dest(self) -> Tensor:
        out = self.slots.new_empty(self.batch, self.tokens)
        out[:, self.first :: 2] = self.slots - 1
        out[:, 1 - self.first :: 2] = counting(self.count - self.kept, out.device) + self.kept
        return out

    @when_asked
    def rep(self) -> Tensor:
        kept = stable_order((~self.stays).byte(), 1)[:, : self.kept] * 2 + self.first
        targets = counting(self.count - self.kept, kept.device, 2) + (1 - self.first)
        return torch.cat([kept, targets.expand(self.batch, -1)], 1)

    @when_asked
    def sources(self) -> Tensor:
        return stable_order(self.rank, 1)[:, : self.merged] * 2 + self.first

    def membership(self, mass: Tensor | None) -> Tensor:
        # A column in front, which nothing is in, because outputs count from 1.
        shape = self.batch, self.tokens, self.count + 1
        out = torch.zeros(shape, dtype=torch.float32, device=self.slots.device)
        sources, targets = out[:, self.first :: 2], out[:, 1 - self.first :: 2]
        own = targets.diagonal(self.kept + 1, 1, 2)
        if mass is None:
            sources.scatter_(2, self.slots[..., None], 1.0)
            own.fill_(1.0)
        else:
            sources.scatter_(2, self.slots[..., None], mass[:, self.first :: 2, None])
            own.copy_(mass[:, 1 - self.first :: 2])
        return out[..., 1:]


class Rounds(TokenMap):
    """Bipartitions one after the other as one map.

    Args:
        steps: the maps, each of the tokens that the one before it leaves.
        chain: `(B, N, M)`, 1 at the output of each token.
    """

    def __init__(self, steps: list[Bipartition], chain: Tensor) -> None:
        self.count, self.drops, self.divide = steps[-1].count, False, True
        self.share = self.weight = self.size_weight = self.gain = self.undo = self.grid = None
        self.steps, self.chain = steps, chain

    @property
    def entered(self) -> int:
        return self.steps[0].entered

    @property
    def batch(self) -> int:
        return self.chain.shape[0]

    @when_asked
    def dest(self) -> Tensor:
        return self.chain.argmax(2)

    @when_asked
    def rep(self) -> Tensor:
        rep = self.steps[0].rep
        for step in self.steps[1:]:
            rep = rep.gather(1, step.rep)
        return rep

    @when_asked
    def sources(self) -> Tensor:
        left, gone = self.steps[0].rep, [self.steps[0].sources]
        for step in self.steps[1:]:
            gone.append(left.gather(1, step.sources))
            left = left.gather(1, step.rep)
        return torch.cat(gone, 1)

    def membership(self, mass: Tensor | None) -> Tensor:
        return self.chain if mass is None else self.chain * mass[..., None]


def merge_in_rounds(points: Tensor, sizes: Tensor | None, counts: list[int], first: int) -> Rounds:
    """The map of `ward`'s rounds, which leave `counts` of `points (B, N, d)`, without a list of tokens."""
    sums = torch.cat([points, torch.ones_like(points[..., :1])], -1)
    sums = sums if sizes is None else sums * sizes[..., None]
    steps: list[Bipartition] = []
    chain: Tensor | None = None
    places = counting(points.shape[1], points.device)
    for left in counts:
        cost, match = merge_costs(points, sizes, first).min(-1)
        rank = cost_ranks(cost, places[: cost.shape[1]])
        steps.append(Bipartition(rank, match, points.shape[1], left, first))
        hot = steps[-1].membership(None)
        chain = hot if chain is None else chain @ hot
        if left != counts[-1]:
            sums = hot.transpose(1, 2) @ sums
            points, sizes = sums[..., :-1] / sums[..., -1:], sums[..., -1]
    assert chain is not None
    return Rounds(steps, chain)


def merge_costs(points: Tensor, sizes: Tensor | None, first: int) -> Tensor:
    """What merging costs by Ward's criterion, twice that for sizes of 1: `(B, A, N - A)` of every second of `points (B,
    N, d)` from `first` on and all the others."""
    product = points @ points.transpose(1, 2)
    squares = product.diagonal(dim1=1, dim2=2)
    a, b = (slice(None), slice(first, None, 2), None), (slice(None), None, slice(1 - first, None, 2))
    cost = torch.sub(squares[a] + squares[b], product[:, first::2, 1 - first :: 2], alpha=2)
    if sizes is None:
        return cost
    inverse = sizes.reciprocal()
    return cost / (inverse[a] + inverse[b])


def cost_ranks(cost: Tensor, places: Tensor) -> Tensor:
    """`(B, K)`: the place of each of `cost (B, K)`, fp32 and at least 0 up to rounding, the lowest first, and of equals
    the one of lowest `places (K,)`, 0 ... K - 1."""
    # The bits of floats that are not negative are in their order; with the index below them no two are equal.
    key = torch.add(places, cost.view(torch.int32), alpha=cost.shape[1])
    return (key[:, None, :] < key[:, :, None]).sum(-1)

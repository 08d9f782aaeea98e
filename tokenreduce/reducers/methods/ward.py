"""The library's own method: Ward's criterion on the directions of tokens, bipartite, in rounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.constants import constant
from tokenreduce.ops.native.dispatch import choose
from tokenreduce.ops.products import suits
from tokenreduce.reducers.checks import check_count
from tokenreduce.reducers.contract import Reducer
from tokenreduce.reducers.parts import bipartition
from tokenreduce.reducers.parts.bipartite import alternating, merge_best
from tokenreduce.reducers.parts.cosine import normalised
from tokenreduce.reducers.parts.sketch import signs, sketch
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens


@register
@dataclass(frozen=True)
class Ward(Reducer):
    """Merge, in rounds of a bipartition, the pairs whose directions Ward's criterion can best do without.

    This library's own combination, no paper. Of two tokens of sizes s, t and unit features u, v `(B, N, C)` merging
    costs `s t / (s + t) |u - v|^2`, what the squared error of the input tokens' directions grows by (Ward 1963): big
    tokens are not merged with others that merely resemble them. Directions, because the norm in front of every layer
    that reads a token removes its length. Each round lets every second token merge into the cheapest of the other half
    and does the best; the next round sees the merged tokens at their new places and sizes, and another partition.
    Features merge by size-weighted means. Every second block reduces, from the second on and by the same ratio:
    planning half as often pays for more rounds. Restored tokens are what they were plus the change since of the token
    that stood for them.

    Distances are compared on a sketch of the directions: channels are added up in `width` groups with fixed random
    signs, which keeps distances on average (count sketch, Charikar et al. 2002) and costs no multiplication.

    Args:
        rounds: bipartite rounds in a layer; more come closer to agglomerative clustering and cost more.
        width: channels of the sketch; None: half of the features' channels, at most 64. All of them: no sketch.
    """

    rounds: int = 3
    width: int | None = None

    name: ClassVar[str] = "ward"
    kind: ClassVar[str] = "merging"
    paper: ClassVar[str] = "none"
    year: ClassVar[int] = 2026
    exportable: ClassVar[bool] = True
    shape: ClassVar[str] = "alternate"
    pooling: ClassVar[str] = "delta"
    checked: ClassVar[str] = "its definition"

    def __post_init__(self) -> None:
        check_count("rounds", self.rounds)
        check_count("width", self.width, optional=True)

    def least(self, n: int) -> int:
        for _ in range(self.rounds):
            n = n - n // 2  # in place it would change a length that is being traced
        return n

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        x, sizes, first = tokens.features, tokens.sizes, tokens.prefix % 2
        counts = round_counts(tokens.count, keep, self.rounds)
        compiled = choose("ward_match", x)
        if compiled is None:
            points = self.sketch(normalised(x.float()))
            rounds = bipartition.merge_in_rounds if suits(points, tokens.count) else merge_in_rounds
            return rounds(points, sizes, counts, first)
        channels = x.shape[-1]
        width = self.sketch_width(channels)
        signed = None if width == channels else constant(signs(channels), x.device)
        dest, rep, sources = compiled(x, sizes, signed, width, counts, first)
        return TokenMap(keep, dest=dest, rep=rep, sources=sources)

    def work(self, step: Step) -> int:
        entered = [step.n, *round_counts(step.n, step.keep, self.rounds)]
        channels = self.sketch_width(step.width) + 2  # with both squares
        return sum(step.bipartite(channels, n) for n in entered[:-1])

    def sketch_width(self, channels: int) -> int:
        """Channels of the sketch of so many."""
        return min(64, max(1, channels // 2)) if self.width is None else min(self.width, channels)

    def sketch(self, x: Tensor) -> Tensor:
        """`(B, N, width)` of `x (B, N, C)`: sums of C / width channels, each with its sign."""
        return sketch(x, self.sketch_width(x.shape[-1]))


def merge_in_rounds(points: Tensor, sizes: Tensor | None, counts: list[int], first: int) -> TokenMap:
    """The map of rounds that leave `counts` of `points (B, N, d)`."""
    total = step = ward_round(points, sizes, counts[0], first)
    for left in counts[1:]:
        points, sizes = step.apply(points, sizes), step.sizes(sizes)
        step = ward_round(points, sizes, left, first)
        total = follow(total, step)
    return total


def ward_round(points: Tensor, sizes: Tensor | None, keep: int, first: int) -> TokenMap:
    """Merge the N - `keep` cheapest of the pairs (source, its cheapest target) of `points (B, N, d)`.

    Sources are every second token from `first`.
    """
    sources, targets = alternating(points, first)
    a, b = points[:, first::2], points[:, 1 - first :: 2]
    squares = points.square().sum(-1, keepdim=True)
    ones = torch.ones_like(squares)
    # |a|^2 + |b|^2 - 2 a.b as one product, without passes over the A x B matrix.
    left = torch.cat([a * -2, squares[:, first::2], ones[:, first::2]], -1)
    right = torch.cat([b, ones[:, 1 - first :: 2], squares[:, 1 - first :: 2]], -1)
    cost = left @ right.transpose(1, 2)
    if sizes is not None:
        inverse = sizes.reciprocal()
        cost = cost / (inverse[:, first::2, None] + inverse[:, None, 1 - first :: 2])
    best, match = cost.min(-1)
    return merge_best(-best, match, sources, targets, keep)


def follow(done: TokenMap, step: TokenMap) -> TokenMap:
    """`done`, then `step`, as one map of merges."""
    both = done.compose(step)
    assert done.rep is not None and done.sources is not None and step.sources is not None
    sources = torch.cat([done.sources, done.rep.gather(1, step.sources)], 1)
    return TokenMap(both.count, dest=both.dest, rep=both.rep, sources=sources)


def round_counts(n: int, keep: int, rounds: int) -> list[int]:
    """Tokens left after each round: equal shares of what is to go, but never more than half of the tokens at once."""
    counts, now = [], n
    for i in range(rounds):
        wanted = n - (n - keep) * (i + 1) // rounds
        least_after = keep
        for _ in range(rounds - 1 - i):
            least_after *= 2  # the rounds to come can halve what this one leaves
        left = max(now - now // 2, min(wanted, least_after))
        if left < now:
            counts.append(left)
            now = left
    return counts

"""The library's own method: agglomerative clustering by Ward's criterion, of directions, and of keys for a stretch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.constants import constant
from tokenreduce.ops.linkage import agglomerate
from tokenreduce.ops.native.dispatch import choose
from tokenreduce.ops.products import suits
from tokenreduce.reducers.checks import check_count, check_number
from tokenreduce.reducers.contract import EVERYWHERE, FastPath, Reducer
from tokenreduce.reducers.parts import bipartition
from tokenreduce.reducers.parts.cosine import normalised
from tokenreduce.reducers.parts.labels import map_of_clusters, with_central
from tokenreduce.reducers.parts.sketch import signs, sketch, sketch_width
from tokenreduce.reducers.parts.ward_rounds import merge_in_rounds, round_counts
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens

LARGEST = torch.finfo(torch.float32).max
LEAST = 0.01  # of the mean attention, below which no token weighs less


@register
@dataclass(frozen=True)
class Ward(Reducer):
    """Merge, one pair after another, the two clusters of tokens that Ward's criterion can best do without.

    This library's own combination, no paper. Of two clusters of sizes s, t and centres u, v `(B, N, d)` merging costs
    `s t / (s + t) |u - v|^2`, what the squared error of all input tokens grows by (Ward 1963): big clusters are not
    merged with others that merely resemble them. The points are directions of features, because the norm in front of
    every layer that reads a token removes its length. Only between a sixth and a quarter of the depth they are keys,
    mean over heads, where a layer reduces there at all and the depth has a whole layer there, such as the third of 12:
    a foundation model loses less so (docs/ward.md). Features merge by size-weighted means. Every block after the first
    quarter reduces by the same ratio; if a budget would leave less than 0.28 of the tokens, earlier ones do, too.
    Restored tokens are what they were plus the change since, which is predicted for each of them from the tokens most
    like it that are left (`maps.kriging`).

    After the first third of the layers, s is no longer the size alone where the model has a class token: it is
    `size^(1 - p) a^p` with the attention a that the class token pays to the cluster and p = `attended`. What the class
    token reads is merged later. Sizes that attention counts stay what they are.

    Distances of directions are those of a sketch: channels are added up in `width` groups with fixed random signs,
    which keeps distances on average (count sketch, Charikar et al. 2002) and costs no multiplication.

    Args:
        rounds: None clusters exactly. A number takes so many rounds of a bipartition instead, on directions alone: in
            each, every second token may merge into the cheapest of the other half, and the best of them do.
        width: channels of the sketch; None: a quarter of the features' channels, at most 64. All of them: no sketch.
        keys_from: the share of the depth from which keys are compared, where the model shows them, but in the first of
            several layers; the last one at the latest.
        early: the share of the depth before which keys are compared; not above `keys_from`: nowhere.
        attended: the part p of the class token's attention in what clusters weigh; 0: they weigh their sizes.
        nearness: in state-space models, whose convolution and scans read neighbours, what a step on the grid counts
            next to directions of length 1.
    """

    rounds: int | None = None
    width: int | None = None
    keys_from: float = 1 / 6
    early: float = 0.25
    attended: float = 0.35
    nearness: float = 0.2

    name: ClassVar[str] = "ward"
    kind: ClassVar[str] = "merging"
    paper: ClassVar[str] = "none"
    year: ClassVar[int] = 2026
    places: ClassVar[frozenset[str]] = EVERYWHERE
    exportable: ClassVar[bool] = True
    uses: ClassVar[frozenset[str]] = frozenset({"mean_keys"})
    between: ClassVar[frozenset[str]] = frozenset({"class_attention"})
    shape: ClassVar[str] = "deferred"
    former: ClassVar[Mapping[str, Any]] = {"attended": 0.0, "keys_from": 0.0}
    restoring: ClassVar[str] = "kriging"
    pooling: ClassVar[str] = "kriging"
    checked: ClassVar[str] = "its definition"
    fast_path: ClassVar[FastPath] = FastPath(averages_keys=True)

    def __post_init__(self) -> None:
        check_count("rounds", self.rounds, optional=True)
        check_count("width", self.width, optional=True)
        check_number("keys_from", self.keys_from, 0, 1)
        check_number("early", self.early, 0, 1)
        check_number("attended", self.attended, 0, 1)
        check_number("nearness", self.nearness, 0)

    def least(self, n: int) -> int:
        if self.rounds is None:
            return 1
        for _ in range(self.rounds):
            n = n - n // 2  # in place it would change a length that is being traced
        return n

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        if self.rounds is not None:
            return self.plan_in_rounds(tokens, keep, self.rounds)
        if tokens.ordered:
            return self.plan_in_place(tokens, keep)
        directions = not (self.compares_keys(tokens.layer, tokens.depth) and tokens.has("mean_keys"))
        x = tokens.features if directions else tokens.keys_to_average
        compiled, masses, attention = self.kernel("ward_cluster", x, tokens)
        if compiled is None:
            points = self.sketch(normalised(x.float())) if directions else tokens.mean_keys
            return map_of_clusters(agglomerate(costs(points, masses), keep, "ward", masses), keep)
        width, signed = self.sketching(x) if directions else (x.shape[-1], None)
        dest, rep, sources = compiled(x, masses, signed, width, directions, keep, *attention)
        return TokenMap(keep, dest=dest, rep=rep, sources=sources)

    def plan_in_place(self, tokens: Tokens, keep: int) -> TokenMap:
        """Clusters of directions and places, each at the place of the member nearest to its middle."""
        x, sizes = tokens.features, tokens.sizes
        if not tokens.has("positions"):
            return clustered(self.sketch(normalised(x.float())), sizes, keep)
        places = tokens.positions
        compiled = choose("ward_in_place", x)
        if compiled is not None:
            width, signed = self.sketching(x)
            dest, rep, sources, middles = compiled(x, places, sizes, signed, width, self.nearness, keep)
            return TokenMap(keep, dest=dest, rep=rep, sources=sources, ascending=True, middles=middles)
        points = self.sketch(normalised(x.float()))
        near = points if not self.nearness else torch.cat([points, places * self.nearness], -1)
        return with_central(clustered(near, sizes, keep), places, sizes)

    def plan_in_rounds(self, tokens: Tokens, keep: int, rounds: int) -> TokenMap:
        x, first = tokens.features, tokens.prefix % 2
        counts = round_counts(tokens.count, keep, rounds)
        compiled, masses, attention = self.kernel("ward_match", x, tokens)
        if compiled is None:
            points = self.sketch(normalised(x.float()))
            merged = bipartition.merge_in_rounds if suits(points, tokens.count) else merge_in_rounds
            return merged(points, masses, counts, first)
        width, signed = self.sketching(x)
        dest, rep, sources = compiled(x, masses, signed, width, counts, first, *attention)
        return TokenMap(keep, dest=dest, rep=rep, sources=sources)

    def work(self, step: Step) -> int:
        width = self.sketch_width(step.width)
        if step.ordered and self.rounds is None:
            return step.n**2 * (width + (2 if self.nearness else 0))
        weighing = step.class_attention if self.weighs_attention(step.layer, step.depth) else 0
        if self.rounds is not None:
            entered = [step.n, *round_counts(step.n, step.keep, self.rounds)]
            return weighing + sum(step.bipartite(width + 2, n) for n in entered[:-1])  # with both squares
        return weighing + step.n**2 * (step.head_dim if self.compares_keys(step.layer, step.depth) else width)

    def kernel(
        self, name: str, x: Tensor, tokens: Tokens
    ) -> tuple[Callable[..., Any] | None, Tensor | None, tuple[Any, ...]]:
        """The kernel `name` for `x`, or None; what tokens weigh, or their sizes where the kernel finds that; and what
        else it needs to find it."""
        fused = choose(f"{name}_attended", x) if self.weighs(tokens) else None
        parts = None if fused is None else tokens.class_attention_parts()
        if parts is None:
            return choose(name, x), self.masses(tokens), ()
        return fused, tokens.sizes, (*parts, float(self.attended), LEAST)

    def masses(self, tokens: Tokens) -> Tensor | None:
        """`(B, N)`: what each token weighs, also where the class token looks away; None: 1 each."""
        if not self.weighs(tokens):
            return tokens.sizes
        seen = tokens.class_attention
        least = LEAST / tokens.count
        seen = torch.where(seen > least, seen, least) ** self.attended  # also for what is no number
        return seen if tokens.sizes is None else seen * tokens.sizes ** (1 - self.attended)

    def weighs(self, tokens: Tokens) -> bool:
        """Whether their weights depend on the class token's attention."""
        return self.weighs_attention(tokens.layer, tokens.depth) and tokens.has("class_attention")

    def weighs_attention(self, layer: int, depth: int) -> bool:
        """Whether the layer reads the class token's attention, if there is one."""
        return self.attended > 0 and 3 * layer >= depth

    def compares_keys(self, layer: int, depth: int) -> bool:
        """Whether the layer compares keys: between these shares of the depth, but never in the first of several, where
        they were worse than directions."""
        return min(max(1, self.keys_from * depth), depth - 1) <= layer < self.early * depth

    def sketch_width(self, channels: int) -> int:
        """Channels of the sketch of so many."""
        return sketch_width(channels) if self.width is None else min(self.width, channels)

    def sketching(self, x: Tensor) -> tuple[int, Tensor | None]:
        """Channels of the sketch of `x (B, N, C)`, and the signs `(C,)` that make it; None: it is `x`."""
        channels = x.shape[-1]
        width = self.sketch_width(channels)
        return width, None if width == channels else constant(signs(channels), x.device)

    def sketch(self, x: Tensor) -> Tensor:
        """`(B, N, width)` of `x (B, N, C)`: sums of C / width channels, each with its sign."""
        return sketch(x, self.sketch_width(x.shape[-1]))


def clustered(points: Tensor, sizes: Tensor | None, keep: int) -> TokenMap:
    """The map of `keep` clusters of `points (B, N, d)`."""
    compiled = choose("ward_cluster", points)
    if compiled is None:
        return map_of_clusters(agglomerate(costs(points, sizes), keep, "ward", sizes), keep)
    dest, rep, sources = compiled(points.contiguous(), sizes, None, points.shape[-1], False, keep)
    return TokenMap(keep, dest=dest, rep=rep, sources=sources)


def costs(points: Tensor, sizes: Tensor | None) -> Tensor:
    """What merging each pair of `points (B, N, d)` costs, `(B, N, N)`; the greatest number where that is none."""
    squares = points.square().sum(-1)
    cost = squares[:, :, None] + squares[:, None] - 2 * torch.bmm(points, points.transpose(1, 2))
    inverse = torch.ones_like(squares) if sizes is None else sizes.reciprocal()
    cost = cost.clamp_min(0) / (inverse[:, :, None] + inverse[:, None])
    return cost.nan_to_num(nan=LARGEST, posinf=LARGEST)

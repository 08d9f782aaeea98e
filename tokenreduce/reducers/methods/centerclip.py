"""CenterCLIP: of each temporal segment of a video keep the medoids of its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenreduce.errors import InvalidValueError
from tokenreduce.maps.token_map import TokenMap, keep_tokens
from tokenreduce.ops.tracing import computed_once
from tokenreduce.reducers.checks import check_count, check_option
from tokenreduce.reducers.contract import Reducer
from tokenreduce.reducers.parts.clustering import by_representative
from tokenreduce.reducers.parts.clusters import choose_seeds, k_medoids, squared_distances
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens


@register
@dataclass(frozen=True)
class CenterCLIP(Reducer):
    """Cluster the tokens of each temporal segment of a video and keep the medoids, in the order of time and place.

    Zhao et al., "CenterCLIP: Token Clustering for Efficient Text-Video Retrieval", SIGIR 2022, arXiv 2205.00823. The
    T time steps of a grid `(T, H, W)` are cut into consecutive segments; of the tokens `(B, N, C)` that enter a block,
    those of one segment become their medoids by k-medoids++ with KKZ seeding: first the token of largest norm, then
    again and again the one farthest from those chosen; every round assigns each token to its nearest medoid and takes
    as medoid of a cluster its member with the least sum of distances to the members. The paper clusters once, before a
    block in the middle, and never restores; here each token is restored as a copy of its medoid.

    Segments keep the same number of tokens; where the budget or T does not divide, the first segments keep one more,
    and a short segment that is full leaves its share to the others. A medoid lies in its segment, so that the tokens
    left stand by segments again: in several stages each segment is clustered on, those of other segments never meet.

    Departures: a fixed number of rounds, where the paper stops when the medoids of the whole batch hardly move (after
    they rest further rounds change nothing); the models here have one class token for all frames, which stays, where
    the paper averages those of a segment; a medoid always belongs to its own cluster, also where another one equals it;
    of normalised tokens the first seed is the one of largest norm before: only rounding tells unit vectors apart.
    The spectral variant is left out.

    Args:
        segments: into how many the video is cut; each time step is one where there are fewer.
        metric: "euclidean", "normalised" the same of tokens divided by their norms, "cosine" 1 less their cosine.
        iterations: rounds.
        aggregate: a token of the output is the size-weighted mean of its cluster, whose sizes add up; False: the medoid
            as it is, of size 1.
    """

    segments: int = 4
    metric: str = "euclidean"
    iterations: int = 10
    aggregate: bool = False

    name: ClassVar[str] = "centerclip"
    kind: ClassVar[str] = "clustering"
    paper: ClassVar[str] = "arXiv 2205.00823"
    year: ClassVar[int] = 2022
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = "mzhaoshuai/CenterCLIP@886fe73: equal but for ties of two and what follows from them"
    needs: ClassVar[frozenset[str]] = frozenset({"frames"})
    placement: ClassVar[str] = "pre"
    shape: ClassVar[str] = "middle"

    def __post_init__(self) -> None:
        check_option("metric", self.metric, ("euclidean", "normalised", "cosine"))
        check_option("aggregate", self.aggregate, bool)
        for name in ("segments", "iterations"):
            check_count(name, getattr(self, name))

    def least_of(self, n: int, grid: tuple[int, ...] | None) -> int:
        """A token of each segment."""
        return self.least(n) if grid is None else min(n, self.segments, grid[0])

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        grid = tokens.grid
        if grid is None or len(grid) != 3 or grid[0] * grid[1] * grid[2] < tokens.count:
            raise InvalidValueError(
                f"centerclip needs the tokens to come from a full grid (T, H, W), but there are {tokens.count} in a "
                f"grid {grid}; it cannot reduce a masked input: give all tokens, or use another method"
            )
        steps = min(self.segments, grid[0])
        entered, left = (shares(grid, steps, count) for count in (tokens.count, keep))
        weight = torch.ones_like(tokens.features[..., 0], dtype=torch.float32) if tokens.sizes is None else tokens.sizes
        labels, medoids = self._cluster(tokens.features.float(), weight, entered, left)
        dest, rep, sources = by_representative(labels, medoids)
        return TokenMap(keep, dest=dest, rep=rep, sources=sources) if self.aggregate else keep_tokens(rep, dest)

    def work(self, step: Step) -> int:
        entered = shares(step.grid, min(self.segments, step.grid[0]), step.n)
        return sum(n**2 * (step.width + self.iterations) for n in entered)

    def _cluster(
        self, x: Tensor, weight: Tensor, entered: tuple[int, ...], left: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """Labels `(B, N)` and medoids `(B, M)` of `x (B, N, C)`, whose segments hold `entered` tokens and keep `left`;
        segments with equal counts are clustered as one batch."""
        parts, weights = x.split(entered, 1), weight.split(entered, 1)
        labels: dict[int, Tensor] = {}
        medoids: dict[int, Tensor] = {}
        first_token, first_medoid = ([0, *accumulate(counts)] for counts in (entered, left))
        for counts in sorted(set(zip(entered, left, strict=True))):
            alike = [s for s, pair in enumerate(zip(entered, left, strict=True)) if pair == counts]
            points, mass = (torch.stack([of[s] for s in alike], 1).flatten(0, 1) for of in (parts, weights))
            found = self._medoids(points, mass, counts[1])
            label, medoid = (index.unflatten(0, (-1, len(alike))).unbind(1) for index in found)
            for i, s in enumerate(alike):
                labels[s], medoids[s] = label[i] + first_medoid[s], medoid[i] + first_token[s]
        label, medoid = ([of[s] for s in range(len(entered))] for of in (labels, medoids))
        return torch.cat(label, 1), torch.cat(medoid, 1)

    def _medoids(self, points: Tensor, weight: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Labels `(B, n)` and medoids `(B, count)` of `points (B, n, C)`."""
        norm = points.norm(dim=-1)
        if self.metric != "euclidean":
            points = points / norm.clamp_min(1e-12)[..., None]
        squared = squared_distances(points)  # of unit vectors: twice 1 less their cosine
        seeds = choose_seeds(squared, norm, weight, count, "kkz")
        return k_medoids(squared if self.metric == "cosine" else squared.sqrt(), weight, seeds, self.iterations)


@computed_once
def shares(grid: tuple[int, ...], segments: int, count: int) -> tuple[int, ...]:
    """How many of `count` tokens stand in each segment: as if dealt out one by one, past segments that are full."""
    steps, cells = grid[0], grid[1] * grid[2]
    room = [((s + 1) * steps // segments - s * steps // segments) * cells for s in range(segments)]
    dealt = [0] * segments
    while count:
        taking = [s for s in range(segments) if dealt[s] < room[s]]
        each = max(1, min(count // len(taking), *(room[s] - dealt[s] for s in taking)))
        for s in taking[:count]:
            dealt[s] += each
            count -= each
    return tuple(dealt)

"""ToFu: prune matched tokens in early blocks, merge them with their norm kept in late ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from tokenreduce.maps.token_map import TokenMap, keep_tokens
from tokenreduce.reducers.checks import check_number, check_option
from tokenreduce.reducers.contract import FastPath, Reducer
from tokenreduce.reducers.parts.bipartite import match_bipartite
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens


@register
@dataclass(frozen=True)
class ToFu(Reducer):
    """Token fusion: match as ToMe, but drop the matched tokens in early blocks and merge them keeping the norm in late.

    Kim et al., "Token Fusion: Bridging the Gap between Token Pruning and Token Merging", WACV 2024, arXiv 2312.01026.
    Matching and output order are ToMe's (keys `(B, N, d)`, mean over heads). In the first `switch * depth` blocks the
    sources are dropped and their destinations stay as they are. Later blocks merge by MLERP: K vectors x_k with mean m
    become `m / |m| * max_k |x_k|`.

    Our definitions, where no source settles the point: sizes add up in the blocks that drop too; the switch at half the
    depth for other depths than 12; a group whose mean vanishes (at most 1e-6 of its largest norm) leaves its
    destination alone; for restoring, a dropped token is stood for by its match. A third-party implementation that many
    tables call ToFu divides by the destination's old norm instead of the mean's, never counts sizes, and drops in 7 of
    12 blocks.

    Args:
        switch: the part of the depth, in [0, 1], whose blocks drop; 0 merges everywhere, 1 drops everywhere.
        merge: "mlerp", or "mean" for a mean whose norm shrinks (the paper's variant AVG).
        weighted: weight the mean by sizes; by default each token counts once, as in the paper's formula.
        inherit: the match of a dropped token takes over its size, so that attention counts it as before; False: sizes
            grow only in the blocks that merge.
    """

    switch: float = 0.5
    merge: str = "mlerp"
    weighted: bool = False
    inherit: bool = True

    name: ClassVar[str] = "tofu"
    kind: ClassVar[str] = "merging"
    paper: ClassVar[str] = "arXiv 2312.01026"
    year: ClassVar[int] = 2024
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = "hchautran/PiToMe@550b5de, which is not by the authors: matching and means equal"
    former: ClassVar[Mapping[str, Any]] = {"inherit": False}
    needs: ClassVar[frozenset[str]] = frozenset({"mean_keys"})
    fast_path: ClassVar[FastPath] = FastPath(averages_keys=True)

    def __post_init__(self) -> None:
        check_number("switch", self.switch, 0, 1)
        check_option("merge", self.merge, ("mlerp", "mean"))
        check_option("weighted", self.weighted, bool)
        check_option("inherit", self.inherit, bool)

    def least(self, n: int) -> int:
        return n - n // 2

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        matched = match_bipartite(tokens.keys_to_average, keep, first=tokens.prefix % 2)
        assert matched.dest is not None and matched.rep is not None
        if tokens.layer < math.floor(self.switch * tokens.depth + 1e-9):
            return keep_tokens(matched.rep, matched.dest, self.inherit)
        if not self.weighted and tokens.sizes is not None:
            # Shares are multiplied by sizes when they are applied: 1 / s lets each token count once.
            matched.weight, matched.size_weight = 1 / tokens.sizes, torch.ones_like(tokens.sizes)
        return matched if self.merge == "mean" else keeping_norms(matched, tokens)

    def work(self, step: Step) -> int:
        return step.bipartite(step.head_dim)


def keeping_norms(merging: TokenMap, tokens: Tokens) -> TokenMap:
    """The map `merging` with gains that give each output the largest norm of its members."""
    dest, rep, features = merging.dest, merging.rep, tokens.features.float()
    assert dest is not None and rep is not None
    length = merging.apply(features, tokens.sizes).norm(dim=-1)
    norms = features.norm(dim=-1)
    largest = torch.zeros_like(length).scatter_reduce(1, dest, norms, "amax")
    vanished = length <= 1e-6 * largest
    gain = torch.where(vanished, torch.ones_like(length), largest / length.clamp_min(1e-30))
    is_rep = torch.zeros_like(norms).scatter(1, rep, 1.0)
    ones = torch.ones_like(norms)
    weight = torch.where(vanished.gather(1, dest), is_rep, ones if merging.weight is None else merging.weight)
    return TokenMap(merging.count, dest, weight, size_weight=ones, rep=rep, sources=merging.sources, gain=gain)

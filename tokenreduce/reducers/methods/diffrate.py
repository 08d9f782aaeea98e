"""DiffRate: keep the most attended tokens and merge the others into them; or drop the least attended first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenreduce.maps.token_map import TokenMap, keep_tokens
from tokenreduce.ops.constants import counting
from tokenreduce.ops.order import stable_order
from tokenreduce.ops.rows import scatter_sums, take
from tokenreduce.reducers.checks import check_number, check_option
from tokenreduce.reducers.contract import Reducer
from tokenreduce.reducers.parts.cosine import normalised
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens


@register
@dataclass(frozen=True)
class DiffRate(Reducer):
    """Keep the tokens with most class attention and merge the others into the kept ones they resemble most.

    Chen et al., "DiffRate: Differentiable Compression Rate for Efficient Vision Transformers", ICCV 2023, arXiv
    2305.17997. Of N tokens, M stay: those with most class attention `(B, N)`, mean over heads. The least attended may
    be dropped, the others (sources) merge into the kept token with the highest cosine of the features `(B, N, C)`: a
    plain mean, whatever the sizes. A size grows by its sources' sizes times their cosines, a discount for poor matches.
    Output order is by falling attention.

    The paper searches the two counts of every layer by gradient, once per model and budget, and ships the tables; give
    the counts left as `schedule=Schedule.keep({layer: count})`, image tokens only (the tables count the class token).
    Without them a budget spreads by one keep ratio over the layers after the first quarter of the depth, since class
    attention says little before, and only merges. These are our definitions; the published table for DeiT-S at 2.9
    GMACs starts gently and drops 38% of what it removes before the last block.

    Departures: sizes stay at least 1, where a negative cosine would take them below (the released training code clamps,
    its inference code does not); norms are clamped at 1e-6; for restoring, a dropped token is stood for by the kept
    token with the most similar features, our definition.

    Args:
        prune: the share of the removed tokens that is dropped, in [0, 1], rounded down to whole tokens; 0 only merges,
            1 only drops.
        inherit: the kept token that a dropped one resembles most takes over its size, so that attention counts it as
            before; False: the size is lost, as in the authors' code.
    """

    prune: float = 0.0
    inherit: bool = True

    name: ClassVar[str] = "diffrate"
    kind: ClassVar[str] = "merging"
    paper: ClassVar[str] = "arXiv 2305.17997"
    year: ClassVar[int] = 2023
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = "OpenGVLab/DiffRate@91ae3e3: selections, outputs and sizes equal"
    former: ClassVar[Mapping[str, Any]] = {"inherit": False}
    needs: ClassVar[frozenset[str]] = frozenset({"class_attention"})
    shape: ClassVar[str] = "after_quarter"

    def __post_init__(self) -> None:
        check_number("prune", self.prune, 0, 1)
        check_option("inherit", self.inherit, bool)

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        order = stable_order(tokens.class_attention, 1, descending=True)
        kept, removed = order[:, :keep], order[:, keep:]
        merged = removed.shape[1] - int(self.prune * removed.shape[1] + 1e-9)
        features = tokens.features.float()
        unit = normalised(features)
        cosine, match = (take(unit, removed) @ take(unit, kept).transpose(1, 2)).max(-1)
        ranks = counting(keep, order.device).expand_as(kept)
        dest = torch.zeros_like(order).scatter(1, kept, ranks).scatter(1, removed, match)
        share = torch.ones_like(unit[..., 0]).scatter(1, removed[:, merged:], 0.0)
        if merged == 0:
            return keep_tokens(kept, dest, self.inherit)
        sizes = torch.ones_like(share) if tokens.sizes is None else tokens.sizes
        growth = share.scatter(1, removed[:, :merged], cosine[:, :merged])
        if self.inherit:
            growth = growth.scatter(1, removed[:, merged:], 1.0)
        return TokenMap(
            keep,
            dest,
            weight=share / sizes,  # times sizes when applied: each token counts once
            size_weight=at_least_one(growth, sizes, dest, kept),
            rep=kept,
            sources=removed,
        )

    def work(self, step: Step) -> int:
        return step.class_attention + (step.n - step.keep) * step.keep * step.width


def at_least_one(growth: Tensor, sizes: Tensor, dest: Tensor, kept: Tensor) -> Tensor:
    """The shares `growth (B, N)` of `sizes (B, N)`, those of the `kept (B, M)` tokens raised so that sums reach 1."""
    total = scatter_sums(growth.new_zeros(kept.shape), dest, growth * sizes)
    return growth.scatter_add(1, kept, (1 - total).clamp_min(0) / sizes.gather(1, kept))

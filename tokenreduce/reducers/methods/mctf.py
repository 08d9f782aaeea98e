"""MCTF: merge pairs that are similar, uninformative and small, in both directions of a bipartition."""

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
from tokenreduce.reducers.checks import check_option
from tokenreduce.reducers.contract import Reducer
from tokenreduce.reducers.parts.cosine import normalised
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens


@register
@dataclass(frozen=True)
class MCTF(Reducer):
    """Merge pairs that are similar, little attended and small, both ways (training-free part of a trained method).

    Lee, Choi and Kim, "Multi-criteria Token Fusion with One-step-ahead Attention for Efficient Vision Transformers",
    CVPR 2024, arXiv 2403.10030. With residual tokens `x (B, N, C)`, sizes s and a_j, the mean over heads and all
    queries of the attention to token j, even positions a and odd positions b of the whole sequence attract each other

        w_ab = ((1 + cos(x_a, x_b)) / 2)^similarity * (1 / (a_a a_b))^information * (1 / (s_a s_b))^size

    Of r merges, the best floor(r / 2) a go to their best b, then the best r - floor(r / 2) b go to their best a among
    those left, by the same w; what had merged into such a b moves on with it. Merged tokens are means weighted by
    `a_j s_j`, sizes add; output order is kept a, then kept b, by position (the authors': b by falling score).

    A budget leaves the first block alone, as the authors do.

    Departures: tokens are merged between attention and MLP and judged by the attention that the block just used, as
    in the paper's variant without look-ahead. The original computes the attention of the block about to run, merges,
    and runs the block with the aggregated map, which no fused kernel can. Its guard against fewer than 10 tokens is
    left to the schedule. Norms are clamped at 1e-6 and ties go to the lower index. The mean over both steps at once,
    with summed weights, is our definition.

    Args:
        similarity, information, size: exponents of the three criteria, 0 switches one off.
        bidirectional: False merges all r from even to odd positions.
    """

    similarity: float = 1.0
    information: float = 0.05
    size: float = 0.025
    bidirectional: bool = True

    name: ClassVar[str] = "mctf"
    kind: ClassVar[str] = "merging"
    paper: ClassVar[str] = "arXiv 2403.10030"
    year: ClassVar[int] = 2024
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = "mlvlab/MCTF@2004da0: pairs and outputs equal where it judges by the same attention"
    needs: ClassVar[frozenset[str]] = frozenset({"received_attention"})
    shape: ClassVar[str] = "after_first"

    def __post_init__(self) -> None:
        for option in ("similarity", "information", "size"):
            value = getattr(self, option)
            check_option(option, float(value) if type(value) is int else value, float)
            if not 0 <= value < math.inf:
                raise InvalidValueError(f"option {option} is {value}; it must be 0 or more and finite")
        check_option("bidirectional", self.bidirectional, bool)

    def least(self, n: int) -> int:
        return n - n // 2

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        queries = tokens.prefix + tokens.count + tokens.suffix
        # A product: OpenVINO mixes the images up where a sum, then a mean, is divided by a number.
        attention = (tokens.received_attention.float().mean(1) * (1 / queries)).clamp_min(1e-12)
        if tokens.padding is not None:  # what gets no attention would attract all others
            least = attention.masked_fill(tokens.padding, 1).amin(1, keepdim=True)
            attention = attention.where(~tokens.padding, least)
        first, removed = tokens.prefix % 2, tokens.count - keep
        forward = removed // 2 if self.bidirectional else removed
        return match_both_ways(
            self._attraction(tokens, attention, first), forward, removed - forward, first, weight=attention
        )

    def work(self, step: Step) -> int:
        return step.attention + step.bipartite(step.width)

    def _attraction(self, tokens: Tokens, attention: Tensor, first: int) -> Tensor:
        """`(B, K, N - K)`: how much each pair wants to merge, up to a factor for each image."""
        x = tokens.features.float()
        unit = normalised(x)
        cosine = unit[:, first::2] @ unit[:, 1 - first :: 2].transpose(1, 2)
        # Rounding below cosine -1 would make NaN of a fractional exponent. Halves are a factor for all pairs.
        attraction = (1 + cosine).clamp_min(0)
        if self.similarity != 1:
            attraction = attraction**self.similarity
        criteria = [(attention, self.information)]
        if tokens.sizes is not None:
            criteria.append((tokens.sizes, self.size))
        exponent = None
        for value, weight in criteria:
            if not weight:
                continue
            value = value / value.amin(1, keepdim=True)
            # The product before the logarithm: pairs of sizes (1, 4) and (2, 2) must tie.
            pair = (value[:, first::2, None] * value[:, None, 1 - first :: 2]).log() * -weight
            exponent = pair if exponent is None else exponent + pair
        if exponent is not None:  # powers of all criteria at once: a power is a logarithm and an exponential
            attraction = attraction * exponent.exp()
        if tokens.padding is not None:
            apart = tokens.padding[:, first::2, None] != tokens.padding[:, None, 1 - first :: 2]
            attraction = attraction.masked_fill(apart, 0)
        return attraction


def match_both_ways(scores: Tensor, forward: int, backward: int, first: int, weight: Tensor) -> TokenMap:
    """The map in which `forward` sources of the first half merge into the second, then `backward` of it into the rest.

    Args:
        scores: `(B, K, N - K)`, of every second token from `first` on with all the others.
        weight: `(B, N)`, shares of the features.
    """
    batch, ones, _ = scores.shape
    device, n = scores.device, weight.shape[1]
    moved, stay = best_first(scores.amax(2), forward)
    # Where the best is, only those that move are asked: of all of them that takes as long as their product.
    rows = scores.gather(1, moved[..., None].expand(-1, -1, scores.shape[2]))
    # Without a way back nobody asks who is left, which may be no one.
    left = scores.gather(1, stay[..., None].expand(-1, -1, scores.shape[2])) if backward else scores
    moved_back, stay_back = best_first(left.amax(1), backward)
    kept = ones - forward
    outputs = counting(stay_back.shape[1], device) + kept
    into = torch.zeros_like(weight[:, ones:], dtype=torch.long).scatter(1, stay_back, outputs.expand(batch, -1))
    if backward:
        columns = left.gather(2, moved_back[:, None, :].expand(-1, left.shape[1], -1))
        into = into.scatter(1, moved_back, columns.argmax(1))
    rep = torch.cat([stay * 2 + first, stay_back * 2 + (1 - first)], 1)
    dest = torch.zeros_like(weight, dtype=torch.long)
    dest = dest.scatter(1, stay * 2 + first, counting(kept, device).expand(batch, -1))
    dest = dest.scatter(1, moved * 2 + first, into.gather(1, rows.argmax(2)))
    others = counting(n - ones, device, step=2) + (1 - first)
    dest = dest.scatter(1, others.expand(batch, -1), into)
    return TokenMap(
        n - forward - backward,
        dest=dest,
        weight=weight,
        size_weight=torch.ones_like(weight),
        rep=rep,
        sources=torch.cat([moved * 2 + first, moved_back * 2 + (1 - first)], 1),
    )


def best_first(score: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The indices of the `count` highest of `score (B, K)`, ties to the lower index, and the others in their order."""
    order = stable_order(score, 1, descending=True)
    return order[:, :count], order[:, count:].sort(dim=1).values

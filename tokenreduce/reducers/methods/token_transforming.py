"""Token Transforming: every removed token flows into several kept ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.constants import counting
from tokenreduce.ops.order import stable_order
from tokenreduce.ops.rows import take
from tokenreduce.reducers.checks import check_count, check_number, check_option
from tokenreduce.reducers.contract import Reducer
from tokenreduce.reducers.parts.cosine import normalised
from tokenreduce.reducers.parts.energy import energy
from tokenreduce.reducers.parts.flow import Flow
from tokenreduce.reducers.parts.merge_price import cheapest_senior, merge_price
from tokenreduce.reducers.parts.sketch import sketch, sketch_width
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens

# What a score reads beyond the metric.
SCORES: dict[str, frozenset[str]] = {
    "price": frozenset(),
    "auto": frozenset(),
    "class_attention": frozenset({"class_attention"}),
    "received_attention": frozenset({"received_attention"}),
    "class_attention_value_norm": frozenset({"class_attention", "values"}),
    "energy": frozenset(),
}
LEAST = 1e-6  # of a temperature and of a norm
MARGIN = 0.9  # of the energy in the first block, PiToMe's default


@register
@dataclass(frozen=True)
class TokenTransforming(Reducer):
    """Keep the tokens that others cannot stand for and spread every other over those similar to it, many to many.

    Zeng et al., "Token Transforming: A Unified and Training-Free Token Compression Framework for Vision Transformer
    Acceleration", arXiv 2506.05709. The paper writes any reduction as `Y = W X` and lets `W (B, M, N)` be many-to-many;
    no code was released, and the rest of the paper was not available to us. So all that follows is our definition in
    the paper's form: `I` are the `keep` tokens with the highest score, in raster order; with similarities `c_ij`,

        G_ij = gamma softmax_i(c_ij / tau)                           for a removed token j, over i in I
        G_jj = self_share, G_ij = (1 - self_share) softmax_{i != j}  for a kept token j
        W = diag(1 / G s) G diag(s), new sizes G s                   with sizes s (B, N): rows of W sum to 1

    By default the price of a pair is Ward's, `p_ij = s_i s_j / (s_i + s_j) |m_i - m_j|^2` with metrics m; a token's
    score is the least price at which a senior one (larger, or as large and earlier) could take it; and `c_ij = min_i
    p_ij / p_ij`: 1 for the nearest kept token, 1/2 for one that costs twice as much. A token then flows to its nearest
    kept token unless the next is about as near: softer maps lose, class attention as the score loses far more.

    Pruning (`gamma=0`) and merging into the most similar kept token (`top_t=1`, or `tau` towards 0) are special cases.
    Restoring uses the transpose of what G is with `gamma=1`, whose rows sum to 1. With a `top_t` nothing but what moves
    is added up; `top_t=None`, `self_share` below 1 and `rescale` multiply the whole matrix.

    `rescale` multiplies each output so that its norm is the mean, weighted by W, of the norms that entered it (ToFu's
    MLERP takes the largest member's, but here every removed token may be a member).

    Args:
        score: "price"; "class_attention" (mean over heads); "received_attention" (from all tokens, mean over heads);
            "class_attention_value_norm" (the first times the norm of the values of all heads); "energy": how few near
            duplicates a token has, minus its energy in PiToMe; "auto": class attention where
            there is a class token, else energy.
        kernel: the similarity, "price" or "cosine" of metrics.
        feature: the metric, "keys" (mean over heads), "features" for the residual stream (its directions in a price),
            or "keys_first": keys in the first quarter of the blocks, then a sketch of the directions of features.
        tau: temperature of the similarity, at least 1e-6.
        top_t: destinations of a removed token; None: all kept tokens.
        theta: least similarity of a destination; where none reaches it, the most similar one alone; None: no limit.
        self_share: what a kept token keeps of itself, from 1e-6 to 1; the rest goes to the other kept tokens.
        gamma: weight of what removed tokens bring, in [0, 1].
        rescale: give outputs the norm that averaging takes.
    """

    score: str = "price"
    kernel: str = "price"
    feature: str = "keys_first"
    tau: float = 0.05
    top_t: int | None = 2
    theta: float | None = None
    self_share: float = 1.0
    gamma: float = 1.0
    rescale: bool = False

    name: ClassVar[str] = "token_transforming"
    kind: ClassVar[str] = "many-to-many"
    paper: ClassVar[str] = "arXiv 2506.05709"
    year: ClassVar[int] = 2025
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = "its specification"
    former: ClassVar[Mapping[str, Any]] = {"kernel": "cosine"}
    pooling: ClassVar[str] = "soft"
    modes: ClassVar[tuple[str, ...]] = ("copy", "soft", "freeze", "delta")
    needs: ClassVar[frozenset[str]] = frozenset({"mean_keys"})
    shape: ClassVar[str] = "root"

    def __post_init__(self) -> None:
        check_option("score", self.score, tuple(SCORES))
        check_option("kernel", self.kernel, ("price", "cosine"))
        check_option("feature", self.feature, ("keys_first", "keys", "features"))
        check_option("rescale", self.rescale, bool)
        check_number("tau", self.tau, LEAST)
        check_number("self_share", self.self_share, LEAST, 1)
        check_number("gamma", self.gamma, 0, 1)
        if self.theta is not None:
            check_number("theta", self.theta, -1, 1)
        check_count("top_t", self.top_t, optional=True)

    def required(self) -> frozenset[str]:
        metric = frozenset({"mean_keys"}) if self.feature != "features" else frozenset()
        return metric | SCORES[self.score]

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        metric = self.metric(tokens)
        order = stable_order(self.scores(tokens, metric), 1, descending=True)
        kept, gone = (part.sort(dim=1).values for part in (order[:, :keep], order[:, keep:]))
        if self.moves_all:
            return self._whole(tokens, metric, kept)
        similar = self.similarity(metric, tokens.sizes, kept, gone)
        onto = stable_order(similar, 1, descending=True)[:, : self.top_t]
        near = similar.gather(1, onto)
        logits = near / self.tau
        if self.theta is not None:
            logits = torch.cat([logits[:, :1], logits[:, 1:].masked_fill(near[:, 1:] < self.theta, -math.inf)], 1)
        back = logits.softmax(1).transpose(1, 2)
        return Flow(kept, gone, onto.transpose(1, 2), self.gamma * back, back)

    @property
    def moves_all(self) -> bool:
        """Whether a token may flow to all others, so that the share matrix is made as a whole."""
        return self.top_t is None or self.self_share < 1 or self.rescale

    def _whole(self, tokens: Tokens, metric: Tensor, kept: Tensor) -> TokenMap:
        """`plan` with the share matrix of all tokens."""
        similarity = self.similarity(metric, tokens.sizes, kept)
        logits = similarity / self.tau
        if self.top_t is not None or self.theta is not None:
            logits = logits.masked_fill(~self.allowed(similarity, kept), -math.inf)
        share = share_matrix(kept, logits, self.gamma, self.self_share)
        # Columns that sum to less than 1, or to 0, are no shares to restore by.
        undo = None if self.gamma == 1 else share_matrix(kept, logits, 1, self.self_share).transpose(1, 2)
        gain = restored_norm(share, tokens.features.float(), tokens.sizes) if self.rescale else None
        return TokenMap(kept.shape[1], share=share, rep=kept, undo=undo, gain=gain)

    def work(self, step: Step) -> int:
        width = self._metric_width(step)
        columns = step.n if self.moves_all else step.n - step.keep
        work = self._score_work(step, width) + columns * step.keep * width
        rescaling = step.n * step.keep * (step.width + 1) if self.rescale else 0
        return work + rescaling + (step.dense_map if self.moves_all else 0)

    def _score_work(self, step: Step, width: int) -> int:
        if self.score in ("price", "energy") or (self.score == "auto" and not step.class_tokens):
            return step.n**2 * width
        return step.attention if self.score == "received_attention" else step.class_attention

    def _metric_width(self, step: Step) -> int:
        if self.feature == "features":
            return step.width
        return step.head_dim if self._by_keys(step.layer, step.depth) else sketch_width(step.width)

    def _by_keys(self, layer: int, depth: int) -> bool:
        return self.feature == "keys" or (self.feature == "keys_first" and 4 * layer < depth)

    def metric(self, tokens: Tokens) -> Tensor:
        """What tokens are compared by, `(B, N, d)`."""
        if self._by_keys(tokens.layer, tokens.depth):
            return tokens.mean_keys.float()
        features = tokens.features.float()
        if self.feature == "keys_first":
            return sketch(normalised(features), sketch_width(features.shape[2]))
        return features

    def scores(self, tokens: Tokens, metric: Tensor) -> Tensor:
        """How badly each token can be done without, `(B, N)`."""
        score = self.score
        if score == "price":
            points = normalised(metric) if self.feature == "features" else metric
            return cheapest_senior(merge_price(points, points, tokens.sizes, tokens.sizes), tokens.sizes)
        if score == "auto":
            score = "class_attention" if tokens.has("class_attention") else "energy"
        if score == "received_attention":
            return tokens.received_attention.float().mean(1)
        if score == "energy":
            return -energy(metric, MARGIN * (1 - tokens.layer / tokens.depth))
        if score == "class_attention_value_norm":
            return tokens.class_attention.float() * tokens.values.float().square().sum((1, 3)).sqrt()
        return tokens.class_attention.float()

    def similarity(self, metric: Tensor, sizes: Tensor | None, kept: Tensor, others: Tensor | None = None) -> Tensor:
        """`(B, M, K)`: of the tokens `kept (B, M)` and `others (B, K)` (None: all tokens)."""
        if self.kernel == "cosine" or self.feature == "features":
            metric = normalised(metric)
        columns = metric if others is None else take(metric, others)
        rows = take(metric, kept)
        if self.kernel == "cosine":
            return torch.bmm(rows, columns.transpose(1, 2))
        mass = sizes if sizes is None or others is None else sizes.gather(1, others)
        price = merge_price(rows, columns, None if sizes is None else sizes.gather(1, kept), mass)
        if others is None:  # a kept token's nearest is another one
            itself = kept[:, :, None] == counting(metric.shape[1], metric.device)
            price = price.masked_fill(itself, math.inf)
        return price.amin(1, keepdim=True).clamp_max(torch.finfo(price.dtype).max) / price

    def allowed(self, similarity: Tensor, kept: Tensor) -> Tensor:
        """`(B, M, N)`: which of `kept (B, M)` each token may flow to, given the `similarity (B, M, N)`.

        Limits hold for removed tokens only.
        """
        order = stable_order(similarity, 1, descending=True)
        nowhere = torch.zeros_like(similarity, dtype=torch.bool)
        allowed = nowhere.scatter(1, order[:, : self.top_t], True)
        if self.theta is not None:
            allowed = allowed & (similarity >= self.theta).scatter(1, order[:, :1], True)
        return allowed.scatter(2, kept[:, None, :].expand(-1, kept.shape[1], -1), True)


def share_matrix(kept: Tensor, logits: Tensor, gamma: float = 1, self_share: float = 1) -> Tensor:
    """The share matrix G `(B, M, N)`.

    Args:
        kept: `(B, M)`, the tokens that represent the outputs.
        logits: `(B, M, N)`; a token flows to the outputs by the softmax over M, -inf takes an output out.
        gamma: weight of what removed tokens bring.
        self_share: what a kept token keeps of itself.
    """
    count = kept.shape[1]
    columns = kept[:, None, :].expand(-1, count, -1)
    itself = torch.eye(count, dtype=logits.dtype, device=kept.device)
    own = itself.expand(kept.shape[0], -1, -1)
    if self_share < 1 and count > 1:
        others = logits.gather(2, columns).masked_fill(itself > 0, -math.inf).softmax(1)
        own = self_share * own + (1 - self_share) * others
    return (gamma * logits.softmax(1)).scatter(2, columns, own)


def restored_norm(share: Tensor, x: Tensor, sizes: Tensor | None) -> Tensor:
    """The factor `(B, M)` that gives the means of `x (B, N, C)` by `share (B, M, N)` the mean norm of their members."""
    mass = share if sizes is None else share * sizes[:, None, :]
    wanted, left = (mass @ x.norm(dim=-1, keepdim=True))[..., 0], (mass @ x).norm(dim=-1)
    # Opposite tokens may cancel: what is left has no direction to rescale.
    return torch.where(left > LEAST * mass.sum(-1), wanted / left.clamp_min(1e-12), torch.ones_like(left))

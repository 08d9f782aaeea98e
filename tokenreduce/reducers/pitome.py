"""PiToMe: merge only tokens that have many near-duplicates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenreduce.kernels.native import choose
from tokenreduce.ordering import stable_order
from tokenreduce.reducers.tome import match_bipartite
from tokenreduce.registry import Reducer, check_number, check_option, register
from tokenreduce.token_map import TokenMap, counting, take
from tokenreduce.tokens import Tokens


@register
@dataclass(frozen=True)
class PiToMe(Reducer):
    """Merge only among the tokens with the highest energy, those with many near-duplicates, and protect all others.

    Tran et al., "Accelerating Transformers with Spectrum-Preserving Token Merging", NeurIPS 2024, arXiv 2405.16148.
    With cosines c_ij of the keys `(B, N, d)`, mean over heads, and a margin m that shrinks with the layer,
    `m = margin * (1 - layer / depth)`, the energy `(B, N)` is `E_i = mean_j f(c_ij)` with, below the margin,
    `f(c) = alpha (exp(c - m) - 1)` and above it `f(c) = c` (the paper) or `c - m` (the released code, continuous).
    To remove k tokens, the 2k of highest energy are split by rank: even ranks merge into their most similar odd rank,
    all of them. Features are size-weighted means. Output order: protected tokens, then odd ranks, by falling energy.

    The released code protects in some blocks only and elsewhere splits all tokens by rank and merges the k most similar
    pairs, as ToMe does; there, output order is ours (kept even ranks, then odd ones). It also leaves sizes out of the
    attention: patch with `prop_attn=False` to follow it. The released DeiT setting is `mode="deit", form="code",
    margin=0.75`.

    Departures: all protected tokens of the model stay out, not only one; norms are clamped at 1e-6; ties of energy and
    of similarity go to the lower index, energies being summed in fp64 so that order of summation does not decide.

    Args:
        form: of the energy: "paper" or "code".
        margin: similarity above which a token counts as a near-duplicate, in the first block; in [0, 1].
        alpha: weight of tokens below the margin, at least 0.
        mode: "protect" for the paper's protection in all blocks; "deit": protection in the second half of the blocks
            only, "mae": in the first half only (rounded up), as the released patches for these models do.
        metric: "keys", or "features" for the residual stream (the released CLIP and BLIP patches).
    """

    form: str = "paper"
    margin: float = 0.9
    alpha: float = 1.0
    mode: str = "protect"
    metric: str = "keys"

    name: ClassVar[str] = "pitome"
    kind: ClassVar[str] = "merging"
    paper: ClassVar[str] = "arXiv 2405.16148"
    year: ClassVar[int] = 2024
    needs: ClassVar[frozenset[str]] = frozenset({"mean_keys"})
    shape: ClassVar[str] = "ratio"

    def __post_init__(self) -> None:
        check_option("form", self.form, ("paper", "code"))
        check_number("margin", self.margin, 0, 1)
        check_number("alpha", self.alpha, 0)
        check_option("mode", self.mode, ("protect", "deit", "mae"))
        check_option("metric", self.metric, ("keys", "features"))

    def least(self, n: int) -> int:
        return n - n // 2

    def required(self) -> frozenset[str]:
        return self.needs if self.metric == "keys" else frozenset()

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        metric = tokens.mean_keys if self.metric == "keys" else tokens.features.float()
        first_half = tokens.layer < (tokens.depth + 1) // 2
        protects = self.mode == "protect" or (self.mode == "mae") == first_half
        protected = 2 * keep - tokens.count if protects else 0
        order = stable_order(self.energy(metric, tokens.layer / tokens.depth), 1, descending=True)
        return merge_ranked(metric, order, keep, protected)

    def energy(self, metric: Tensor, progress: float) -> Tensor:
        """N times the energy of each token, `(B, N)` in fp64; `progress` through the depth is in [0, 1)."""
        margin = self.margin * (1 - progress)
        compiled = choose("pitome_energy", metric)
        if compiled is not None:
            return compiled(metric, margin, self.alpha, self.form == "code")
        unit = metric / metric.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        index = counting(metric.shape[1], metric.device)
        # Rounding must not decide between equals: a token's cosine with itself is 1, or 0 for a zero vector, and the
        # two cosines of a pair are one number.
        own = unit.square().sum(-1, keepdim=True).round()
        product = unit @ unit.transpose(1, 2)
        cosine = torch.where(index == index[:, None], own, (product + product.transpose(1, 2)) / 2)
        above = cosine if self.form == "paper" else cosine - margin
        # In fp64 the sum of so many fp32 numbers is exact, so that equal energies come out equal.
        return torch.where(cosine >= margin, above, self.alpha * (cosine - margin).expm1()).sum(-1, dtype=torch.float64)


def merge_ranked(metric: Tensor, order: Tensor, keep: int, protected: int) -> TokenMap:
    """The map that leaves the last `protected` tokens of `order (B, N)` alone and matches even with odd ranks of the
    others by cosine of `metric (B, N, d)`, the most similar first."""
    mergeable = order.shape[1] - protected
    matched = match_bipartite(take(metric, order[:, :mergeable]), keep - protected)
    assert matched.dest is not None and matched.rep is not None and matched.sources is not None
    aside = counting(protected, order.device).expand(order.shape[0], -1)
    dest = torch.zeros_like(order).scatter(1, order, torch.cat([matched.dest + protected, aside], 1))
    rep = order.gather(1, torch.cat([aside + mergeable, matched.rep], 1))
    return TokenMap(keep, dest=dest, rep=rep, sources=order.gather(1, matched.sources))

"""PiToMe: merge only tokens that have many near-duplicates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenreduce.maps.lazy import when_asked
from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.constants import counting
from tokenreduce.ops.order import stable_order
from tokenreduce.ops.rows import take
from tokenreduce.reducers.checks import check_number, check_option
from tokenreduce.reducers.contract import EVERYWHERE, Reducer
from tokenreduce.reducers.parts.bipartite import match_bipartite
from tokenreduce.reducers.parts.energy import FORMS, energy
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens


@register
@dataclass(frozen=True)
class PiToMe(Reducer):
    """Merge those with many near-duplicates, the tokens of highest energy; in the second half of the blocks protect all
    others.

    Tran et al., "Accelerating Transformers with Spectrum-Preserving Token Merging", NeurIPS 2024, arXiv 2405.16148.
    With cosines c_ij of the keys `(B, N, d)`, mean over heads, and a margin m that shrinks with the layer,
    `m = margin * (1 - layer / depth)`, the energy `(B, N)` is `E_i = mean_j f(c_ij)` with, below the margin,
    `f(c) = alpha (exp(c - m) - 1)` and above it `f(c) = c` (the paper) or `c - m` (the released code, continuous).
    To remove k tokens, the 2k of highest energy are split by rank: even ranks merge into their most similar odd rank,
    all of them. Features are size-weighted means. Output order: protected tokens, then odd ranks, by falling energy.

    The defaults are the released setting for DeiT: it protects in the second half of the blocks only, and before splits
    all tokens by rank and merges the k most similar pairs, as ToMe does; there, output order is ours (kept even ranks,
    then odd ones). The paper's prose is `mode="protect", form="paper", margin=0.9`. The released code leaves sizes out
    of the attention, as `prop_attn=False` does. On DINOv2 ViT-S/14 both have a larger error than the defaults.

    Departures: all protected tokens of the model stay out, not only one; norms are clamped at 1e-6; ties of energy and
    of similarity go to the lower index, energies being summed in fp64 so that order of summation does not decide.

    Args:
        form: of the energy: "paper" or "code".
        margin: similarity above which a token counts as a near-duplicate, in the first block; in [0, 1].
        alpha: weight of tokens below the margin, at least 0.
        mode: "deit": protection in the second half of the blocks only, "mae": in the first half only (rounded up), as
            the released patches for these models do; "protect" for the paper's protection in all blocks.
        metric: "keys", or "features" for the residual stream (the released CLIP and BLIP patches).
    """

    form: str = "code"
    margin: float = 0.75
    alpha: float = 1.0
    mode: str = "deit"
    metric: str = "keys"

    name: ClassVar[str] = "pitome"
    kind: ClassVar[str] = "merging"
    paper: ClassVar[str] = "arXiv 2405.16148"
    year: ClassVar[int] = 2024
    places: ClassVar[frozenset[str]] = EVERYWHERE
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = (
        "hchautran/PiToMe@550b5de: selections and outputs equal; ties of energy, which rounding decides there, aside"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"mean_keys"})
    shape: ClassVar[str] = "ratio"

    def __post_init__(self) -> None:
        check_option("form", self.form, FORMS)
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
        protected = 2 * keep - tokens.count if self._protects(tokens.layer, tokens.depth) else 0
        order = stable_order(
            energy(metric, self.margin * (1 - tokens.layer / tokens.depth), self.alpha, self.form), 1, True
        )
        return merge_ranked(metric, order, keep, protected)

    def work(self, step: Step) -> int:
        width = step.head_dim if self.metric == "keys" else step.width
        matched = 2 * (step.n - step.keep) if self._protects(step.layer, step.depth) else step.n
        return step.n**2 * width + step.bipartite(width, matched)

    def _protects(self, layer: int, depth: int) -> bool:
        first_half = layer < (depth + 1) // 2
        return self.mode == "protect" or (self.mode == "mae") == first_half


def merge_ranked(metric: Tensor, order: Tensor, keep: int, protected: int) -> TokenMap:
    """The map that leaves the last `protected` tokens of `order (B, N)` alone and matches even with odd ranks of the
    others by cosine of `metric (B, N, d)`, the most similar first."""
    mergeable = order.shape[1] - protected
    matched = match_bipartite(take(metric, order[:, :mergeable]), keep - protected)
    return Ranked(order, matched, protected)


class Ranked(TokenMap):
    """The map `matched` of the first of `order (B, N)`, in which the last `protected` stay, as the first outputs.

    Its lists of tokens are made when asked for: merging on a GPU needs no more than `dest`.
    """

    def __init__(self, order: Tensor, matched: TokenMap, protected: int) -> None:
        self.count, self.drops, self.divide = matched.count + protected, False, True
        self.share = self.weight = self.size_weight = self.gain = self.undo = self.grid = None
        self.order, self.matched, self.protected = order, matched, protected
        assert matched.dest is not None
        places = torch.cat([matched.dest + protected, self.aside()], 1) if protected else matched.dest
        self.dest = order.scatter(1, order, places)  # which changes all of it

    def aside(self) -> Tensor:
        return counting(self.protected, self.order.device).expand(self.order.shape[0], -1)

    @when_asked
    def rep(self) -> Tensor:
        rep = self.matched.rep
        assert rep is not None
        if self.protected:
            rep = torch.cat([self.aside() + self.matched.entered, rep], 1)
        return self.order.gather(1, rep)

    @when_asked
    def sources(self) -> Tensor:
        assert self.matched.sources is not None
        return self.order.gather(1, self.matched.sources)

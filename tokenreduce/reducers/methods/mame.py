"""MaMe: merge with one share matrix made of thresholded similarities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.constants import counting
from tokenreduce.ops.order import stable_order
from tokenreduce.reducers.checks import check_number
from tokenreduce.reducers.contract import Reducer
from tokenreduce.reducers.parts.cosine import normalised
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens


@register
@dataclass(frozen=True)
class MaMe(Reducer):
    """Spread every second token over all tokens of the other half that are similar enough, by matrix products.

    "MaMe and MaRe: matrix-based token merging and restoration", CVPR 2026 Findings, arXiv 2604.13432, known to us
    through its README and notes. Targets T are the even image tokens, sources S the odd ones; `C (B, T, S)` is the
    cosine of their residual tokens. Of `relu(C - tau)` each column keeps the entries that reach the mean of its
    non-zero ones and is scaled to sum 1: W, the shares of a source. `y_i = (s_i t_i + sum_j W_ij s_j x_j) / (s_i +
    sum_j W_ij s_j)` with sizes s; a restored source is `sum_j W_ij y_i`. Output order: targets, then the sources kept.

    Without a budget a source is merged if its column is not empty in any image of the batch (the union of the
    distinctive ones is kept): the count depends on the batch. With a budget, and once that count is known, each image
    merges the sources with the largest best cosine; one without an entry above tau goes to its best target alone. For
    one image without a budget that is the paper's rule; in a batch each image keeps its own distinctive sources and
    not those of the others, at the same count.

    Without a budget the first two thirds of the blocks merge, as in the README; with one, all of them do.

    Our definitions, since the paper is not confirmed: residual tokens as the features, the alternating split, the
    default tau (the paper's for another model), the form with a budget, and that a column whose entries are all equal
    to their mean, such as one with a single entry, keeps them (taken literally, it would vanish).

    Args:
        tau: the cosine that an entry must pass.
    """

    tau: float = 0.8

    name: ClassVar[str] = "mame"
    kind: ClassVar[str] = "many-to-many"
    paper: ClassVar[str] = "arXiv 2604.13432"
    year: ClassVar[int] = 2026
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = "its specification; cominder/mame@a5c07de holds no code"
    pooling: ClassVar[str] = "soft"
    modes: ClassVar[tuple[str, ...]] = ("copy", "soft", "freeze", "delta")
    adaptive: ClassVar[bool] = True
    budgeted: ClassVar[str] = "merges the sources with the most similar targets; tau still shapes their shares"

    def __post_init__(self) -> None:
        check_number("tau", self.tau, -1, 1)

    def least(self, n: int) -> int:
        return n - n // 2

    def deciding_layers(self, depth: int) -> tuple[int, ...]:
        return tuple(range(max(1, depth * 8 // 12)))

    def decide(self, tokens: Tokens, state: Any = None) -> int:
        merged = (similarity(tokens.features).amax(1) > self.tau).all(0)
        return tokens.count - int(merged.sum())

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        cosine = similarity(tokens.features)
        batch, targets, sources = cosine.shape
        best, nearest = cosine.max(1)
        order = stable_order(best, 1, descending=True)
        kept = order[:, tokens.count - keep :].sort(dim=1).values
        onto, places = counting(targets, cosine.device), counting(tokens.count, cosine.device)
        shares = column_shares(cosine, self.tau)
        alone = (onto[:, None] == nearest[:, None]).float()
        shares = torch.where(shares.sum(1, keepdim=True) > 0, shares, alone)
        stays = kept[:, :, None] == counting(sources, cosine.device)
        shares = shares * ~stays.any(1, keepdim=True)
        itself = counting(keep, cosine.device)[:, None] == onto
        of_sources = torch.cat([shares, stays.float()], 1)
        # Written in place, a trace would keep the batch that it was made with.
        columns = torch.cat([itself.float().expand(batch, -1, -1), of_sources], 2)
        share = columns[:, :, (places % 2) * targets + places // 2]
        rep = torch.cat([(onto * 2).expand(batch, -1), kept * 2 + 1], 1)
        return TokenMap(keep, share=share, rep=rep)

    def work(self, step: Step) -> int:
        return step.bipartite(step.width) + step.dense_map


def similarity(features: Tensor) -> Tensor:
    """Cosine of every even token and every odd one of `features (B, N, C)`: `(B, T, S)`."""
    unit = normalised(features.float())
    return unit[:, 0::2] @ unit[:, 1::2].transpose(1, 2)


def column_shares(cosine: Tensor, tau: float) -> Tensor:
    """W `(B, T, S)`: columns of sum 1, or of zeros where no entry passes `tau`."""
    over = (cosine - tau).relu()
    mean = over.sum(1, keepdim=True) / (over > 0).sum(1, keepdim=True).clamp_min(1)
    # Equal entries may lie an ulp below their mean.
    over = over * (over >= mean * (1 - 1e-5))
    total = over.sum(1, keepdim=True)
    return over / torch.where(total > 0, total, torch.ones_like(total))

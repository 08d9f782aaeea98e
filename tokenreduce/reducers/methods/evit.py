"""EViT: keep the tokens that the class token attends to most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenreduce.errors import InvalidValueError
from tokenreduce.maps.token_map import TokenMap, keep_tokens
from tokenreduce.ops.constants import counting
from tokenreduce.ops.native.dispatch import choose
from tokenreduce.ops.order import stable_order
from tokenreduce.reducers.checks import check_option
from tokenreduce.reducers.contract import Reducer
from tokenreduce.reducers.parts.cosine import nearest_kept
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens


@register
@dataclass(frozen=True)
class EViT(Reducer):
    """Keep the tokens with most class attention, fuse the others into one (training-free part of a trained method).

    Liang et al., "Not All Patches Are What You Need: Expediting Vision Transformers via Token Reorganizations", ICLR
    2022, arXiv 2202.07800. The score `(B, N)` is the class token's attention, mean over heads, computed from its one
    query row so that fused attention stays on. The paper trains with the reduction; this is its training-free part.

    Departures: the distillation token is protected and its row counts like the class token's; kept tokens stay in
    raster order; the fused token is normalised by default, since the raw sum of small weights is only right for weights
    trained with it; it counts as one of the tokens left. The authors' form is `normalise=False, inherit=False`. Without
    training both are bad: one token of size 90 does not stand for 90, and dropping at random has less error on a
    self-supervised model (docs/methods.md). `topk` is better there. For restoring, a dropped token is stood for by the
    fused one, or without it by the kept token with the most similar key.

    Args:
        fuse: append the attention-weighted mean of the dropped tokens.
        normalise: divide the fused token by the sum of its weights.
        inherit: the fused token counts as all that it holds, or without it the token that stands for a dropped one
            takes over its size; False: the sizes are lost, as in the authors' code.
    """

    fuse: bool = True
    normalise: bool = True
    inherit: bool = True

    name: ClassVar[str] = "evit"
    kind: ClassVar[str] = "pruning"
    paper: ClassVar[str] = "arXiv 2202.07800"
    year: ClassVar[int] = 2022
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = "its specification; youweiliang/evit@5ca95a7, selections and outputs equal"
    former: ClassVar[Mapping[str, Any]] = {"inherit": False}
    needs: ClassVar[frozenset[str]] = frozenset({"class_attention", "mean_keys"})
    shape: ClassVar[str] = "stages"

    def __post_init__(self) -> None:
        check_option("fuse", self.fuse, bool)
        check_option("normalise", self.normalise, bool)
        check_option("inherit", self.inherit, bool)
        if self.fuse and self.inherit and not self.normalise:
            raise InvalidValueError(
                "options normalise=False and inherit=True exclude each other: the raw sum of small weights is a short "
                "token, and attention would count it as all that it holds; give inherit=False, as the authors do, or "
                "normalise=True"
            )

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        fuses = self.fuse and keep > 1
        kernel = choose("fuse_attended", tokens.features) if fuses else None
        parts = None if kernel is None else tokens.class_attention_parts()
        if kernel is not None and parts is not None:
            return self.fused(keep, *kernel(*parts, tokens.count, tokens.sizes, keep))
        score = tokens.class_attention
        kernel = choose("fuse_rest", score) if fuses else None
        if kernel is not None:
            return self.fused(keep, *kernel(score, tokens.sizes, keep))
        order = stable_order(score, 1, descending=True)
        if not fuses:
            kept = order[:, :keep].sort(dim=1).values
            return keep_tokens(kept, nearest_kept(tokens.mean_keys, kept), self.inherit)
        kept, dropped = order[:, : keep - 1].sort(dim=1).values, order[:, keep - 1 :]
        ranks = counting(keep - 1, score.device).expand(score.shape[0], -1)
        dest = torch.full_like(order, keep - 1).scatter(1, kept, ranks)
        # Attention to a token of size s already counts it s times: a share of a / s lets the sizes cancel.
        share = score if tokens.sizes is None else score / tokens.sizes
        share = share.clamp_min(1e-12).scatter(1, kept, 1.0)
        gain = None
        if not self.normalise:
            total = score.gather(1, dropped).sum(1, keepdim=True)
            gain = torch.cat([torch.ones_like(kept, dtype=score.dtype), total], 1)
        rep = torch.cat([kept, dropped[:, :1]], 1)
        ones = torch.ones_like(share)
        grows, sources = ones if self.inherit else alone(ones, rep), dropped[:, 1:]
        return TokenMap(keep, dest, share, size_weight=grows, rep=rep, sources=sources, fused=True, gain=gain)

    def fused(
        self, keep: int, dest: Tensor, share: Tensor, ones: Tensor, rep: Tensor, sources: Tensor, total: Tensor
    ) -> TokenMap:
        """The map of what a kernel gives, see `fuse_rest` in `ops.triton.select`."""
        gain = None if self.normalise else torch.cat([ones[:, : keep - 1], total], 1)
        grows = ones if self.inherit else alone(ones, rep)
        return TokenMap(keep, dest, share, size_weight=grows, rep=rep, sources=sources, fused=True, gain=gain)

    def work(self, step: Step) -> int:
        fuses = self.fuse and step.keep > 1
        return step.class_attention + (0 if fuses else step.nearest_kept(step.head_dim))


def alone(ones: Tensor, rep: Tensor) -> Tensor:
    """`(B, N)`: 1 for the tokens `rep (B, M)`, 0 for all others, whose sizes are lost."""
    return torch.zeros_like(ones).scatter(1, rep, 1.0)

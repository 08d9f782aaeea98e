"""VisionZip: keep the tokens that are attended to most, and a few that stand for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.order import stable_order
from tokenreduce.reducers.checks import check_number, check_option
from tokenreduce.reducers.contract import Reducer
from tokenreduce.reducers.parts.cosine import normalised
from tokenreduce.reducers.parts.highest import keep_in_order
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens

AUTO, CLASS, RECEIVED = "auto", "class", "received"
SUM, MEAN = "sum", "mean"


@register
@dataclass(frozen=True)
class VisionZip(Reducer):
    """Before a language model, keep the tokens attended to most in the vision tower, and let a few stand for the rest.

    Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models", CVPR 2025,
    arXiv 2412.04467. Of k tokens `int(contextual k)` are contextual. The others are the dominant ones, with the highest
    score `(B, N)`. Of the remaining ones, in raster order, every s-th is a target, `s = |rest| // contextual`, and each
    other one joins the target of most similar key (mean over heads). A contextual token is the target plus the mean of
    those that joined it, a sum, as in the authors' code.

    Departures: tokens merge after the projector, and what stands for their keys there is the tokens themselves; the
    class token does not enter the language model, where the authors count it as one of the dominant; a contextual token
    stands at the place of its target, not after all dominant ones.

    Args:
        contextual: the share of contextual tokens of those kept; 10 of 64 in the authors' examples, 30 of 221 in their
            code.
        score: "class": what the class token attends to; "received": what tokens receive from all; "auto": the first
            where the tower has a class token, else the second.
        merge: "sum" as above; "mean" halves the sum, so that a contextual token is as long as others are.
    """

    contextual: float = 10 / 64
    score: str = AUTO
    merge: str = SUM

    name: ClassVar[str] = "visionzip"
    kind: ClassVar[str] = "merging"
    paper: ClassVar[str] = "arXiv 2412.04467"
    year: ClassVar[int] = 2024
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = "its specification; dvlab-research/VisionZip@3151f6d, selections, order and outputs equal"
    needs: ClassVar[frozenset[str]] = frozenset({"received_attention"})
    uses: ClassVar[frozenset[str]] = frozenset({"class_attention", "mean_keys"})
    shape: ClassVar[str] = "first"
    places: ClassVar[frozenset[str]] = frozenset({"language"})
    positions: ClassVar[str] = "renumber"
    modes: ClassVar[tuple[str, ...]] = ("copy", "freeze", "delta")

    def __post_init__(self) -> None:
        check_number("contextual", self.contextual, 0, 1)
        check_option("score", self.score, (AUTO, CLASS, RECEIVED))
        check_option("merge", self.merge, (SUM, MEAN))

    def required(self) -> frozenset[str]:
        return frozenset({"class_attention"}) if self.score == CLASS else self.needs

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        by_class = self.score == CLASS or (self.score == AUTO and tokens.has("class_attention"))
        score = tokens.class_attention if by_class else tokens.received_attention.mean(1)
        few = min(keep - 1, int(keep * self.contextual))
        order = stable_order(score, 1, descending=True)
        dominant, rest = (part.sort(dim=1).values for part in order.tensor_split([keep - few], 1))
        if not few:
            return keep_in_order(dominant, tokens.count)
        targets = rest[:, :: rest.shape[1] // few][:, :few]
        shares = joined(normalised(tokens.mean_keys), rest, targets)
        if self.merge == MEAN:
            shares = shares / shares.sum(2, keepdim=True)
        own = torch.zeros_like(shares[:, :1]).expand(-1, keep - few, -1).scatter(2, dominant[..., None], 1.0)
        return TokenMap(keep, share=torch.cat([own, shares], 1), rep=torch.cat([dominant, targets], 1), divide=False)

    def work(self, step: Step) -> int:
        few = min(step.keep - 1, int(step.keep * self.contextual))
        by_class = self.score == CLASS or (self.score == AUTO and step.class_tokens > 0)
        compared = step.n * few * step.head_dim + (step.dense_map if few else 0)
        return (step.class_attention if by_class else step.attention) + compared


def joined(unit: Tensor, rest: Tensor, targets: Tensor) -> Tensor:
    """`(B, T, N)`: 1 for each of the `targets (B, T)`, and for those of `rest (B, R)` that join it, by the directions
    `unit (B, N, d)`, one part each."""
    chosen = unit.gather(1, targets[..., None].expand(-1, -1, unit.shape[-1]))
    nearest = (unit @ chosen.transpose(1, 2)).argmax(-1)
    joins = torch.zeros_like(nearest, dtype=torch.bool).scatter(1, rest, True).scatter(1, targets, False)
    numbers = torch.arange(targets.shape[1], device=unit.device)
    member = ((nearest[:, None] == numbers[:, None]) & joins[:, None]).to(unit.dtype)
    return (member / member.sum(2, keepdim=True).clamp_min(1)).scatter(2, targets[..., None], 1.0)

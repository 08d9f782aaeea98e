"""ToDRE: keep tokens that differ from each other, and late in a language model none, once nobody asks for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.farthest_first import farthest_first
from tokenreduce.reducers.checks import check_number, check_option
from tokenreduce.reducers.contract import Ending, Reducer
from tokenreduce.reducers.parts.clusters import squared_distances
from tokenreduce.reducers.parts.cosine import normalised
from tokenreduce.reducers.parts.highest import keep_in_order
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens

MAXSUM, MAXMIN = "maxsum", "maxmin"


@register
@dataclass(frozen=True)
class ToDRE(Reducer):
    """Keep tokens that differ most from each other, and late in a language model none, once text does not read them.

    Li et al., "ToDRE: Visual Token Pruning via Diversity and Task Awareness for Efficient Large Vision-Language
    Models", arXiv 2505.18757. Before the language model: the first token kept is the one to which the vision tower's
    class token attends most; then again and again the one whose cosines to those kept have the least sum. At 7/8 of
    the depth all that are left leave a prompt in which both attention of text to images and of images to text are below
    `threshold`: means over rows and heads, in the layer before, of what goes there. With `keep=1.0` nothing leaves.

    Departures: where a tower has no class token the first is the one whose cosines to all tokens have the least sum;
    the class token's attention is that of the layer whose features are taken, where the paper has the last one; what
    images attend to among images of earlier turns counts as text; tokens keep their positions where all may leave
    later. Not confirmed: positions, and how layers are counted.

    Args:
        criterion: "maxsum" as above, of the paper's second version; "maxmin", of its first, takes the token whose
            nearest kept one is farthest.
        threshold: 0.1 in the paper; 0: images stay until the last layer, which every family can do.
    """

    criterion: str = MAXSUM
    threshold: float = 0.1

    name: ClassVar[str] = "todre"
    kind: ClassVar[str] = "pruning"
    paper: ClassVar[str] = "arXiv 2505.18757"
    year: ClassVar[int] = 2025
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = "its specification"
    uses: ClassVar[frozenset[str]] = frozenset({"class_attention"})
    shape: ClassVar[str] = "first"
    places: ClassVar[frozenset[str]] = frozenset({"language"})
    positions: ClassVar[str] = "renumber"

    def __post_init__(self) -> None:
        check_option("criterion", self.criterion, (MAXSUM, MAXMIN))
        check_number("threshold", self.threshold, 0, 1)

    def ending(self, depth: int) -> Ending | None:
        return Ending(max(1, depth * 7 // 8), self.threshold) if self.threshold else None

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        unit = normalised(tokens.features.float())
        if tokens.has("class_attention"):
            first = tokens.class_attention.argmax(1)
        else:
            first = (unit @ unit.sum(1)[..., None])[..., 0].argmin(1)
        if self.criterion == MAXMIN:
            kept = farthest_first(squared_distances(unit), first, keep)
        else:
            kept = least_sum_first(unit, first, keep)
        return keep_in_order(kept, tokens.count)

    def work(self, step: Step) -> int:
        compared = step.n**2 if self.criterion == MAXMIN else step.n * (step.keep - 1)
        return step.class_attention + (0 if step.class_tokens else step.n * step.width) + compared * step.width


def least_sum_first(unit: Tensor, first: Tensor, count: int) -> Tensor:
    """`(B, count)`: `first (B,)`, then again and again the one of `unit (B, N, C)` whose products with those chosen
    have the least sum; of equals the lowest index."""
    sums = torch.zeros_like(unit[..., 0])
    chosen = [first[:, None]]
    for _ in range(count - 1):
        newest = unit.gather(1, chosen[-1][..., None].expand(-1, -1, unit.shape[2]))
        sums = (sums + (unit @ newest.transpose(1, 2))[..., 0]).scatter(1, chosen[-1], torch.inf)
        chosen.append(sums.argmin(1, keepdim=True))
    return torch.cat(chosen, 1)

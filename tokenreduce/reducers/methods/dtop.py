"""DToP: tokens that an auxiliary head already classifies with confidence leave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenreduce.maps.token_map import TokenMap, keep_tokens
from tokenreduce.ops.order import stable_order
from tokenreduce.ops.tracing import exporting
from tokenreduce.reducers.checks import check_number, check_option
from tokenreduce.reducers.contract import Reducer
from tokenreduce.reducers.parts.cosine import normalised
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens


@register
@dataclass(frozen=True)
class Dtop(Reducer):
    """Where the model has auxiliary heads, stop processing the tokens that they classify with confidence.

    Tang et al., "Dynamic Token Pruning in Plain Vision Transformers for Semantic Segmentation", ICCV 2023, arXiv
    2308.01045. A token is easy if its auxiliary head gives its best class a probability above `threshold`; of each
    class the `context` most confident easy tokens stay all the same. Where a head predicts several places of a token,
    the token is as confident as the least of them, and of the class of their mean probability.

    It reduces after the layers that have auxiliary heads. Without a budget all images of a batch keep as many tokens as
    the one that keeps most; the others fill up with their least confident easy tokens. With a budget the most confident
    tokens leave first, whatever the threshold, and the context of each class last.

    Departures: probabilities are the softmax of a head's logits, where SegViT's heads multiply those of a class and of
    a mask; predictions of tokens that left are not frozen on a canvas of the auxiliary heads' logits, since only
    the model's own head knows its output. Instead a token that left is stood for by the most similar token of its class
    that stayed (of any class if none did); `restore="freeze"` freezes its features.

    Args:
        threshold: in [0, 1]; 1 lets no token leave.
        context: tokens of each class that always stay.
        inherit: the token that stands for a dropped one takes over its size, so that attention counts it as before;
            False: the size is lost, as in the authors' code.
    """

    threshold: float = 0.95
    context: int = 5
    inherit: bool = True

    name: ClassVar[str] = "dtop"
    kind: ClassVar[str] = "pruning"
    paper: ClassVar[str] = "arXiv 2308.01045"
    year: ClassVar[int] = 2023
    checked: ClassVar[str] = "its specification; zbwxp/Dynamic-Token-Pruning@2baefff, selections by softmax equal"
    former: ClassVar[Mapping[str, Any]] = {"inherit": False}
    needs: ClassVar[frozenset[str]] = frozenset({"auxiliary_logits"})
    placement: ClassVar[str] = "post"
    shape: ClassVar[str] = "stages"
    adaptive: ClassVar[bool] = True
    budgeted: ClassVar[str] = "the most confident tokens leave first, whatever the threshold"
    exportable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold, 0, 1)
        check_option("context", self.context, int)
        check_number("context", self.context, 0)
        check_option("inherit", self.inherit, bool)

    def decide(self, tokens: Tokens, state: Any = None) -> int:
        confidence, label = predictions(tokens)
        easy = confidence > self.threshold
        leaves = easy & ~self._context(confidence.masked_fill(~easy, -1), label, easy)
        return max(1, tokens.count - int(leaves.sum(1).min()))

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        confidence, label = predictions(tokens)
        stays = self._context(confidence, label, torch.ones_like(label, dtype=torch.bool))
        order = stable_order(confidence - 2 * stays, 1, descending=True)
        kept = order[:, tokens.count - keep :].sort(dim=1).values
        return keep_tokens(kept, nearest_of_class(tokens.features, kept, label), self.inherit)

    def work(self, step: Step) -> int:
        return step.nearest_kept(step.width)

    def _context(self, confidence: Tensor, label: Tensor, among: Tensor) -> Tensor:
        """`(B, N)`: the `context` tokens of each class, of those in `among`, with the highest confidence."""
        by_confidence = stable_order(confidence, 1, descending=True)
        order = by_confidence.gather(1, stable_order(label.gather(1, by_confidence), 1))
        first = rank_of_equals(label.gather(1, order)) < self.context
        # As numbers, for Core ML does not scatter booleans.
        return (torch.zeros_like(order).scatter(1, order, first.long()) > 0) & among


def predictions(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Confidence `(B, N)` and class `(B, N)` of each token."""
    chances = tokens.auxiliary_logits.float().softmax(-1)
    return chances.amax(-1).amin(-1), chances.mean(2).argmax(-1)


def rank_of_equals(ordered: Tensor) -> Tensor:
    """`(B, N)`: for each of `ordered (B, N)`, in ascending order, how many of its equals stand before it."""
    if exporting():  # few runtimes search, and OpenVINO 2026.4 loses what is added to a sum
        return (ordered[:, :, None] == ordered[:, None]).tril(-1).sum(-1)
    return torch.arange(ordered.shape[1], device=ordered.device) - torch.searchsorted(ordered, ordered)


def nearest_of_class(features: Tensor, kept: Tensor, label: Tensor) -> Tensor:
    """`(B, N)`: for every token the most similar of `kept (B, M)` that has its class, or of all where none has."""
    unit = normalised(features.float())
    likeness = unit @ unit.gather(1, kept[..., None].expand(-1, -1, unit.shape[2])).transpose(1, 2)
    same = label[:, :, None] == label.gather(1, kept)[:, None]
    return (likeness + 4 * same).argmax(-1)

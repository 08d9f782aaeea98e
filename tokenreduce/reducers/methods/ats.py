"""ATS: sample the tokens to keep at even heights of the score's cumulative distribution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenreduce.errors import InvalidValueError
from tokenreduce.maps.token_map import TokenMap, keep_tokens
from tokenreduce.ops.constants import constant
from tokenreduce.ops.order import stable_order
from tokenreduce.reducers.checks import check_option
from tokenreduce.reducers.contract import Reducer
from tokenreduce.reducers.parts.cosine import nearest_kept
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens

MINIMUM = 8  # tokens that sampling leaves at least
LADDER = 16  # numbers of heights tried to meet a budget
TOLERANCE = 1e-6  # of the cumulative score, which goes to 1: exact ties must not depend on rounding


@register
@dataclass(frozen=True)
class ATS(Reducer):
    """Sample tokens at even heights of the cumulative score, so that an image with few important tokens keeps few.

    Fayyaz et al., "Adaptive Token Sampling for Efficient Vision Transformers", ECCV 2022, arXiv 2111.15667. The score
    `S (B, N)` is the class attention, mean over heads, times the norm of the values `(B, H, N, d)` of all heads
    together, normalised to sum 1. In ascending order `F_i = S_(1) + ... + S_(i)` and `F~ = (F - F_1) / (F_N - F_1)`.
    Each of R heights in (0, 1] picks the token with the nearest `F~`; the tokens picked at least once stay.

    Without a budget, R is the reference count less one, and all images of a batch keep as many tokens as the one with
    the most picks (8 at least); the others fill up with their next best scores, where the original pads with zeros.
    With a budget (our definition; the original's control is its reference count), R falls in 16 even steps from the
    reference to the number of tokens to keep. Each image takes the largest R that picks no more than these, and fills
    up the same way.

    Departures: the reduction follows the attention of the whole layer instead of selecting its rows, which is the same
    and leaves fused attention on; the reference count follows the input's size by default; with fewer heights than
    tokens none are left out beforehand; 8 tokens stay at least, where the original's 8 bounds its reference count; a
    single height is 1. Of equal scores the lower index counts as the better, and
    without any score all are equal. The variant `sum_h A_h |v_h|` of the score is left out: it needs the class
    attention of each head. For restoring (not in the paper), a dropped token is stood for by the kept token with the
    most similar key, which takes over its size (in the original it is lost).

    The original reduces in every block after the first quarter. Under a budget three stages have less error in the
    patch tokens and more in the class token than `layers=range(3, 12)`.

    Args:
        heights: "official": from the smallest non-zero `F~` to 1, both included; "paper": `(2 t - 1) / (2 R)`.
        n_ref: the reference count, class token included; 197 in the paper. None: the image tokens that enter the
            model, plus 1.
        inherit: the token that stands for a dropped one takes over its size, so that attention counts it as before;
            False: the size is lost, as in the authors' code.
    """

    heights: str = "official"
    n_ref: int | None = None
    inherit: bool = True

    name: ClassVar[str] = "ats"
    kind: ClassVar[str] = "pruning"
    paper: ClassVar[str] = "arXiv 2111.15667"
    year: ClassVar[int] = 2022
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = "its specification; adaptivetokensampling/ATS@9271257, equal but for ties within 1e-6"
    former: ClassVar[Mapping[str, Any]] = {"inherit": False}
    needs: ClassVar[frozenset[str]] = frozenset({"class_attention", "values", "mean_keys"})
    shape: ClassVar[str] = "stages"
    adaptive: ClassVar[bool] = True
    budgeted: ClassVar[str] = "samples with the most heights that pick no more than the budget, then fills up by score"

    def __post_init__(self) -> None:
        check_option("heights", self.heights, ("official", "paper"))
        check_option("inherit", self.inherit, bool)
        if self.n_ref is not None:
            check_option("n_ref", self.n_ref, int)
            if self.n_ref < 2:
                raise InvalidValueError(f"option n_ref is {self.n_ref}; it must be 2 or more, or None")

    def begin(self, tokens: Tokens) -> int:
        return tokens.count

    def deciding_layers(self, depth: int) -> tuple[int, ...]:
        return tuple(range(depth * 3 // 12, depth))

    def decide(self, tokens: Tokens, state: Any = None) -> int:
        """The most picks of the batch's images: the one place where an image's result depends on the others."""
        _, cumulative = ranking(scores(tokens))
        picked = self._picks(cumulative, (self._reference(tokens, state),)).sum(-1)
        return min(tokens.count, max(MINIMUM, int(picked.max())))

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        order, cumulative = ranking(scores(tokens))
        reference = self._reference(tokens, state)
        excess = max(0, reference - keep)
        picks = self._picks(cumulative, tuple(reference - step * excess // (LADDER - 1) for step in range(LADDER)))
        # The last step has keep heights at most and needs no look: it cannot pick too many.
        fits = picks[:, :-1].sum(-1) <= keep
        step = (fits.cumsum(1) == 0).sum(1)[:, None, None].expand(-1, 1, tokens.count)
        best_first, picked = order.flip(1), picks.gather(1, step)[:, 0].flip(1).long()
        front = stable_order(picked, 1, descending=True)[:, :keep]
        kept = best_first.gather(1, front).sort(dim=1).values
        return keep_tokens(kept, nearest_kept(tokens.mean_keys, kept), self.inherit)

    def work(self, step: Step) -> int:
        return step.class_attention + step.nearest_kept(step.head_dim)

    def _reference(self, tokens: Tokens, state: int | None) -> int:
        if self.n_ref is not None:
            return self.n_ref - 1
        return tokens.count if state is None else state

    def _picks(self, cumulative: Tensor, counts: tuple[int, ...]) -> Tensor:
        """Which tokens, by ascending score, are picked with so many heights: `(B, len(counts), N)`.

        A token is nearest to a height iff heights above its upper neighbour's half-way point are fewer than above its
        lower one's; a height half-way goes to the lower token, as with argmin.
        """
        total = constant(counts, cumulative.device).float()[None, :, None]
        half_way = (cumulative[:, None, 1:] + cumulative[:, None, :-1]) / 2
        if self.heights == "paper":
            above = total - (total * (half_way + TOLERANCE) + 0.5).floor()
        else:
            lowest = torch.where(cumulative > 0, cumulative, 1.0).amin(1)[:, None, None]
            gaps = (total - 1).clamp_min(0.5)  # one height: 1 alone
            steps = (1 - half_way - TOLERANCE) * gaps / (1 - lowest).clamp_min(1e-12)
            above = torch.where(half_way < lowest, total, steps.ceil().minimum(total))
        edges = torch.cat([total.expand(above.shape[0], -1, 1), F.pad(above, (0, 1))], -1)
        return edges[..., :-1] > edges[..., 1:]


def scores(tokens: Tokens) -> Tensor:
    """Class attention times value norm `(B, N)`, sum 1; all equal where every one is 0."""
    raw = tokens.class_attention.float() * tokens.values.float().norm(dim=-1).norm(dim=1)
    raw = torch.where(raw.amax(1, keepdim=True) > 0, raw, 1.0)
    return raw / raw.sum(1, keepdim=True)


def ranking(score: Tensor) -> tuple[Tensor, Tensor]:
    """Indices `(B, N)` by ascending score, the lower index last among equals, and `F~ (B, N)` in that order."""
    order = stable_order(score, 1, descending=True).flip(1)
    total = score.gather(1, order).cumsum(1)
    first = total[:, :1]
    return order, (total - first) / (total[:, -1:] - first).clamp_min(1e-12)

"""Top-k: keep the tokens with the largest score, of a choice of scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from tokenreduce.maps.token_map import TokenMap, keep_tokens
from tokenreduce.ops.order import stable_order
from tokenreduce.reducers.checks import check_option
from tokenreduce.reducers.contract import Reducer
from tokenreduce.reducers.parts.cosine import nearest_kept
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens

# What each score needs of the model, beyond the keys that restoring needs.
NEEDED: dict[str, frozenset[str]] = {
    "class_attention": frozenset({"class_attention"}),
    "received_attention": frozenset({"received_attention"}),
    "key_norm": frozenset({"keys"}),
    "value_norm": frozenset({"values"}),
    "feature_norm": frozenset(),
    "scan_output": frozenset({"scan_output"}),
}


@register
@dataclass(frozen=True)
class TopK(Reducer):
    """Keep the image tokens with the largest score, by default most class attention, and drop all others.

    The pruning baseline of Haurum et al., "Which Tokens to Use? Investigating Token Reduction in Vision Transformers",
    ICCV 2023 workshops, arXiv 2308.04657; with class attention it is EViT without the fused token. The score `(B, N)`
    is one of

        class_attention     mean_h A[h, class, j]
        received_attention  mean_h sum_i A[h, i, j], all queries i, protected ones included; needs no class token
        key_norm            L2 norm of the keys of all heads together; value_norm: of the values
        feature_norm        L2 norm of the residual stream
        scan_output         of state-space models, mean over channels of the scans' output where it is positive

    Kept tokens stay in raster order; of equal scores the lower index is kept. For restoring (not in the paper), a
    dropped token is stood for by the kept token with the most similar key, which takes over its size; in the original
    sizes are lost, and with them the attention that went there. Only "received_attention" computes more than one row of
    attention; the norms need none and no class token.

    Args:
        score: which of the scores.
        largest: False keeps the smallest scores instead. Which end of a norm matters depends on the model: with
            register-like outliers the largest norms are artefacts.
        inherit: the token that stands for a dropped one takes over its size, so that attention counts it as before;
            False: the size is lost, as in the authors' code.
    """

    score: str = "class_attention"
    largest: bool = True
    inherit: bool = True

    name: ClassVar[str] = "topk"
    kind: ClassVar[str] = "pruning"
    paper: ClassVar[str] = "arXiv 2308.04657"
    year: ClassVar[int] = 2023
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = "its specification; JoakimHaurum/TokenReduction@88fe07e, selections and outputs equal"
    former: ClassVar[Mapping[str, Any]] = {"inherit": False}
    needs: ClassVar[frozenset[str]] = frozenset({"class_attention", "mean_keys"})
    shape: ClassVar[str] = "stages"
    scan_shape: ClassVar[str] = "stages"

    def __post_init__(self) -> None:
        check_option("score", self.score, tuple(NEEDED))
        check_option("largest", self.largest, bool)
        check_option("inherit", self.inherit, bool)

    def required(self) -> frozenset[str]:
        return NEEDED[self.score] | {"mean_keys"}

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        order = stable_order(self._scores(tokens), 1, descending=self.largest)
        kept = order[:, :keep].sort(dim=1).values
        return keep_tokens(kept, nearest_kept(tokens.mean_keys, kept), self.inherit)

    def work(self, step: Step) -> int:
        needed = {"class_attention": step.class_attention, "received_attention": step.attention}
        return needed.get(self.score, 0) + step.nearest_kept(step.head_dim)

    def _scores(self, tokens: Tokens) -> Tensor:
        if self.score == "class_attention":
            return tokens.class_attention
        if self.score == "received_attention":
            return tokens.received_attention.mean(1)
        if self.score == "feature_norm":
            return tokens.features.float().norm(dim=-1)
        if self.score == "scan_output":
            return tokens.scan_output.float().clamp_min(0).mean(-1)
        heads = tokens.keys if self.score == "key_norm" else tokens.values
        return heads.float().norm(dim=-1).norm(dim=1)

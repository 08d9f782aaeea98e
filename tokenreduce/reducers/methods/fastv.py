"""FastV: early in a language model, keep the tokens to which the prompt's last token attends most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tokenreduce.maps.token_map import TokenMap
from tokenreduce.reducers.checks import check_count
from tokenreduce.reducers.contract import Reducer
from tokenreduce.reducers.parts.highest import keep_highest
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens


@register
@dataclass(frozen=True)
class FastV(Reducer):
    """Before layer K of a language model, keep the tokens to which the prompt's last token attends most in layer K - 1.

    Chen et al., "An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for Large
    Vision-Language Models", ECCV 2024, arXiv 2403.06764. The score `(B, N)` of a token is `mean_h A[h, last, j]`, a row
    of the full softmax of layer K - 1; kept tokens stay in the order and at the positions that they had.

    As in the authors' code, and not in the paper, which averages the rows of all tokens. Departure: a share rounds
    down.

    Args:
        layer: K, before which tokens leave where `keep` is one number; 1 or more.
    """

    layer: int = 2

    name: ClassVar[str] = "fastv"
    kind: ClassVar[str] = "pruning"
    paper: ClassVar[str] = "arXiv 2403.06764"
    year: ClassVar[int] = 2024
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = "its specification; pkunlp-icler/FastV@d165972, selections equal"
    needs: ClassVar[frozenset[str]] = frozenset({"text_attention"})
    shape: ClassVar[str] = "first"
    places: ClassVar[frozenset[str]] = frozenset({"language"})

    def __post_init__(self) -> None:
        check_count("layer", self.layer)

    def language_layers(self, depth: int) -> tuple[int, ...]:
        return (self.layer,)

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        return keep_highest(tokens.text_attention, keep)

    def work(self, step: Step) -> int:
        return 0

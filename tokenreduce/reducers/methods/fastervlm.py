"""FasterVLM: keep the tokens to which the vision tower's class token attends most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tokenreduce.maps.token_map import TokenMap
from tokenreduce.reducers.checks import check_option
from tokenreduce.reducers.contract import Reducer
from tokenreduce.reducers.parts.highest import keep_highest
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens

TAKEN, ALL = "taken", "all"


@register
@dataclass(frozen=True)
class FasterVLM(Reducer):
    """Before a language model, keep the tokens to which the vision tower's class token attends most, and drop the rest.

    Zhang et al., "[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM Inference Faster",
    arXiv 2412.01818 (its first version; later ones are VisPruner, which also removes what is alike). The score `(B, N)`
    of a token is `mean_h A[h, class, j]`, a row of the full softmax, in the layer of the tower whose output the
    language model gets (the mean over layers where it gets several). Kept tokens stay in raster order; of equal scores
    the lower index is kept. In a vision transformer the same is `topk`.

    With `tower_layers="all"` the score is the mean over all layers up to that one, as in VTC-CLS ("[CLS] Token Tells
    Everything Needed for Training-free Efficient MLLMs", arXiv 2412.05819; which layers it takes is not confirmed).

    Departure: fractions round down as everywhere here; the paper's tables round up.

    Args:
        tower_layers: "taken", those whose output is taken, or "all" until there.
    """

    tower_layers: str = TAKEN

    name: ClassVar[str] = "fastervlm"
    kind: ClassVar[str] = "pruning"
    paper: ClassVar[str] = "arXiv 2412.01818"
    year: ClassVar[int] = 2024
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = "its specification; Theia-4869/FasterVLM@f5d5f12, selections equal"
    needs: ClassVar[frozenset[str]] = frozenset({"class_attention"})
    shape: ClassVar[str] = "first"
    places: ClassVar[frozenset[str]] = frozenset({"language"})
    positions: ClassVar[str] = "renumber"

    def __post_init__(self) -> None:
        check_option("tower_layers", self.tower_layers, (TAKEN, ALL))

    def averages_tower(self) -> bool:
        return self.tower_layers == ALL

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        return keep_highest(tokens.class_attention, keep)

    def work(self, step: Step) -> int:
        return step.class_attention

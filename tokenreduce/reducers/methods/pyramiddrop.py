"""PyramidDrop: in stages of a language model, keep the tokens to which the prompt's last token attends most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tokenreduce.maps.token_map import TokenMap
from tokenreduce.reducers.contract import Reducer
from tokenreduce.reducers.parts.highest import keep_highest
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens


@register
@dataclass(frozen=True)
class PyramidDrop(Reducer):
    """At 1/4, 1/2 and 3/4 of a language model keep the tokens to which the prompt's last token attends most.

    Xing et al., "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction",
    CVPR 2025, arXiv 2410.17247. `keep` is what each stage keeps of the tokens that enter it (lambda, 0.5 in the paper).

    Departures: the score is the attention of the layer before a stage, which runs anyway, and not one that the layer
    after it would have; tokens keep their positions, where the authors' code counts them anew.
    """

    name: ClassVar[str] = "pyramiddrop"
    kind: ClassVar[str] = "pruning"
    paper: ClassVar[str] = "arXiv 2410.17247"
    year: ClassVar[int] = 2025
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = "its specification; Cooperx521/PyramidDrop@6444f30, selections by given attention equal"
    needs: ClassVar[frozenset[str]] = frozenset({"text_attention"})
    shape: ClassVar[str] = "stages"
    places: ClassVar[frozenset[str]] = frozenset({"language"})

    def language_layers(self, depth: int) -> tuple[int, ...]:
        return tuple(sorted({max(1, depth * quarter // 4) for quarter in (1, 2, 3)}))

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        return keep_highest(tokens.text_attention, keep)

    def work(self, step: Step) -> int:
        return 0

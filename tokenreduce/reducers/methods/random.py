"""The honest baseline: drop tokens at random."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random as Generator
from typing import Any, ClassVar

import torch

from tokenreduce.maps.token_map import TokenMap, keep_tokens
from tokenreduce.ops.constants import constant
from tokenreduce.ops.tracing import computed_once
from tokenreduce.reducers.checks import check_option
from tokenreduce.reducers.contract import EVERYWHERE, Reducer
from tokenreduce.reducers.parts.cosine import nearest_kept
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens


@register
@dataclass(frozen=True)
class Random(Reducer):
    """Drop image tokens chosen uniformly without replacement, the same ones in every image of every forward.

    A baseline, no paper. The choice depends on the seed, the layer and the counts only, so that an image's result
    does not depend on the images around it. For restoring, a dropped token is stood for by the kept token before it; in
    state-space models, whose convolution reads what stands for it, by the most similar one.

    Args:
        seed: another seed drops other tokens.
    """

    seed: int = 0

    name: ClassVar[str] = "random"
    kind: ClassVar[str] = "baseline"
    paper: ClassVar[str] = "none"
    year: ClassVar[int] = 2026
    places: ClassVar[frozenset[str]] = EVERYWHERE
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = "its specification"

    def __post_init__(self) -> None:
        check_option("seed", self.seed, int)

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        batch, device = tokens.features.shape[0], tokens.features.device
        kept = constant(choose(self.seed, tokens.layer, tokens.count, keep), device)
        if tokens.ordered:
            kept = kept.expand(batch, -1)
            return keep_tokens(kept, nearest_kept(tokens.features, kept))
        is_kept = torch.zeros(tokens.count, dtype=torch.long, device=device).scatter(0, kept, 1)
        dest = (is_kept.cumsum(0) - 1).clamp_min(0)
        return keep_tokens(kept.expand(batch, -1), dest.expand(batch, -1))

    def work(self, step: Step) -> int:
        return step.nearest_kept(step.width) if step.ordered else 0


@computed_once
def choose(seed: int, layer: int, n: int, keep: int) -> tuple[int, ...]:
    """`keep` of `n` indices in ascending order."""
    return tuple(sorted(Generator(f"{seed}/{layer}/{n}").sample(range(n), keep)))

"""HSA: keep the tokens whose scan output is largest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tokenreduce.maps.token_map import TokenMap, keep_tokens
from tokenreduce.ops.order import stable_order
from tokenreduce.reducers.contract import Reducer
from tokenreduce.reducers.parts.cosine import nearest_kept
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens


@register
@dataclass(frozen=True)
class Hsa(Reducer):
    """Keep the image tokens of a state-space model with the largest clipped scan output, and drop all others.

    Zhan et al., "Exploring Token Pruning in Vision State Space Models", NeurIPS 2024, arXiv 2409.18962. The score `(B,
    N)` is the mean over channels of max(0, y), y being the gated output of both scans before the output projection.
    Kept tokens stay in raster order.

    Our reading: the paper's hidden state alignment, what the state does where tokens are missing, is `scan_gap` of
    `patch`, and its equation is not confirmed; the released code has no alignment and finishes no forward, and its
    score is the backward scan alone, not clipped and in reversed order. What stands for a dropped token, in the
    convolution (`scan_conv`) and when tokens come back, is the most similar kept one.
    """

    name: ClassVar[str] = "hsa"
    kind: ClassVar[str] = "pruning"
    paper: ClassVar[str] = "arXiv 2409.18962"
    year: ClassVar[int] = 2024
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = "its specification; ZLKong/ToP-ViM@b5bc231, which finishes no forward: its ranks equal"
    needs: ClassVar[frozenset[str]] = frozenset({"scan_output"})
    shape: ClassVar[str] = "stages"
    scan_shape: ClassVar[str] = "stages"

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        score = tokens.scan_output.float().clamp_min(0).mean(-1)
        kept = stable_order(score, 1, descending=True)[:, :keep].sort(dim=1).values
        return keep_tokens(kept, nearest_kept(tokens.features.float(), kept))

    def work(self, step: Step) -> int:
        return step.nearest_kept(step.width)

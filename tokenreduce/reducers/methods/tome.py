"""ToMe: merge the most similar pairs of a fixed bipartition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from tokenreduce.maps.token_map import TokenMap
from tokenreduce.reducers.checks import check_option
from tokenreduce.reducers.contract import EVERYWHERE, FastPath, Reducer
from tokenreduce.reducers.parts.bipartite import match_bipartite
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens


def merge_at_once(
    reducer: Any, kernel: Any, x: Tensor, keys: Tensor, sizes: Tensor | None, keep: int, prefix: int, suffix: int
) -> tuple[TokenMap, Tensor, Tensor, Tensor]:
    """`ToMe.plan` and `TokenMap.merge` of its map, by the compiled kernel; arguments as in `FastPath`."""
    metric = keys if reducer.metric == "keys" else x
    out, grown, bias, dest, rep, moved = kernel(x, metric, sizes, keep, prefix % 2, prefix, suffix)
    return TokenMap(keep, dest=dest, rep=rep, sources=moved), out, grown, bias


def match_ahead(reducer: Any, keys: Tensor, keep: int, prefix: int, suffix: int) -> TokenMap:
    """`ToMe.plan` of keys; arguments as in `FastPath`."""
    return match_bipartite(keys[..., prefix : keys.shape[-2] - suffix, :], keep, first=prefix % 2)


@register
@dataclass(frozen=True)
class ToMe(Reducer):
    """Token merging: every second token may merge into its most similar neighbour of the other half, the best r do.

    Bolya et al., "Token Merging: Your ViT but Faster", ICLR 2023, arXiv 2210.09461. Cosine similarity of the keys of
    the block `(B, N, d)`, mean over heads; sources stand at even positions of the whole sequence, prefix tokens
    counted; merged features are size-weighted means; output order is kept sources, then destinations.

    Departures: norms are clamped at 1e-6 (the original divides by zero), ties go to the lower index, and any number of
    protected tokens is allowed; they never take part.

    Args:
        metric: "keys", or "features" for the residual stream.
    """

    metric: str = "keys"

    name: ClassVar[str] = "tome"
    kind: ClassVar[str] = "merging"
    paper: ClassVar[str] = "arXiv 2210.09461"
    year: ClassVar[int] = 2023
    places: ClassVar[frozenset[str]] = EVERYWHERE
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = "its specification; facebookresearch/ToMe@af95e4b, selections, sizes and outputs equal"
    needs: ClassVar[frozenset[str]] = frozenset({"mean_keys"})
    fast_path: ClassVar[FastPath] = FastPath(
        averages_keys=True, kernel="bipartite_merge", merge=merge_at_once, ahead=match_ahead
    )

    def __post_init__(self) -> None:
        check_option("metric", self.metric, ("keys", "features"))

    def plans_ahead(self) -> bool:
        return super().plans_ahead() and self.metric == "keys"

    def least(self, n: int) -> int:
        return n - n // 2

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        metric = tokens.keys_to_average if self.metric == "keys" else tokens.features
        return match_bipartite(metric, keep, first=tokens.prefix % 2)

    def work(self, step: Step) -> int:
        return step.bipartite(step.head_dim if self.metric == "keys" else step.width)

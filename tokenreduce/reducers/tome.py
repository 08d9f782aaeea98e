"""ToMe: merge the most similar pairs of a fixed bipartition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenreduce.kernels.native import choose
from tokenreduce.ordering import stable_order
from tokenreduce.registry import Reducer, check_option, register
from tokenreduce.token_map import TokenMap, counting
from tokenreduce.tokens import Tokens


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
    needs: ClassVar[frozenset[str]] = frozenset({"mean_keys"})
    averages_keys: ClassVar[bool] = True
    kernel: ClassVar[str] = "bipartite_merge"

    def __post_init__(self) -> None:
        check_option("metric", self.metric, ("keys", "features"))

    def least(self, n: int) -> int:
        return n - n // 2

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        metric = tokens.keys_to_average if self.metric == "keys" else tokens.features
        return match_bipartite(metric, keep, first=tokens.prefix % 2)

    def merge_at_once(
        self, kernel: Any, x: Tensor, keys: Tensor, sizes: Tensor | None, keep: int, prefix: int, suffix: int
    ) -> tuple[TokenMap, Tensor, Tensor, Tensor]:
        metric = keys if self.metric == "keys" else x
        out, grown, bias, dest, rep, moved = kernel(x, metric, sizes, keep, prefix % 2, prefix, suffix)
        return TokenMap(keep, dest=dest, rep=rep, sources=moved), out, grown, bias


def match_bipartite(metric: Tensor, keep: int, first: int = 0) -> TokenMap:
    """The map of one bipartite soft matching.

    Args:
        metric: `(B, N, d)`, or `(B, H, N, d)` for its mean over heads, compared by cosine in fp32.
        keep: tokens left; at least N - N // 2.
        first: index of the first source; sources are every second token from there.
    """
    compiled = choose("bipartite_match", metric)
    if compiled is not None:
        dest, rep, moved = compiled(metric, keep, first)
        return TokenMap(keep, dest=dest, rep=rep, sources=moved)
    metric = metric.float().mean(1) if metric.ndim == 4 else metric.float()
    sources, targets = alternating(metric, first)
    best, match = alternating_scores(metric, first).max(-1)
    return merge_best(best, match, sources, targets, keep)


def alternating(metric: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Places of the sources `(B, A)`, every second token from `first`, and of the targets `(B, N - A)`."""
    batch, n, _ = metric.shape
    count = (n - first + 1) // 2
    sources = counting(count, metric.device, 2) + first
    targets = counting(n - count, metric.device, 2) + (1 - first)
    return sources.expand(batch, -1), targets.expand(batch, -1)


def alternating_scores(metric: Tensor, first: int) -> Tensor:
    """Cosine of every source and every target of `alternating`, `(B, A, N - A)`."""
    unit = normalised(metric)
    return unit[:, first::2] @ unit[:, 1 - first :: 2].transpose(1, 2)


def normalised(metric: Tensor) -> Tensor:
    """Rows of length 1; zero rows stay zero."""
    return metric / metric.norm(dim=-1, keepdim=True).clamp_min(1e-6)


def merge_best(best: Tensor, match: Tensor, sources: Tensor, targets: Tensor, keep: int) -> TokenMap:
    """The map that merges the N - `keep` sources with the best scores, each into its match.

    Args:
        best, match: `(B, A)`, every source's score and which of the targets it would merge into.
        sources, targets: places of both `(B, A)`, `(B, N - A)`, in ascending order.
    """
    batch, n = best.shape[0], sources.shape[1] + targets.shape[1]
    device, removed = best.device, n - keep
    order = stable_order(best, 1, descending=True)
    places = sources.gather(1, order)
    moved, kept = places[:, :removed], places[:, removed:].sort(dim=1).values
    rep = torch.cat([kept, targets], 1)
    dest = counting(1, device).expand(batch, n).scatter(1, rep, counting(keep, device).expand(batch, -1))
    dest = dest.scatter_(1, moved, match.gather(1, order[:, :removed]) + kept.shape[1])
    return TokenMap(keep, dest=dest, rep=rep, sources=moved)

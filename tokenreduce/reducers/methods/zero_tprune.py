"""Zero-TPrune: rank tokens by a page rank on the attention graph, drop similar and then unimportant ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.maps.token_map import TokenMap, keep_tokens
from tokenreduce.ops.constants import counting
from tokenreduce.ops.order import stable_order
from tokenreduce.reducers.checks import check_count, check_option
from tokenreduce.reducers.contract import Reducer
from tokenreduce.reducers.parts.cosine import nearest_kept, normalised
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens


@register
@dataclass(frozen=True)
class ZeroTPrune(Reducer):
    """Drop tokens like a more important one, by votes on the attention graph, and the least voted for where asked.

    Wang et al., "Zero-TPrune: Zero-Shot Token Pruning through Leveraging of the Attention Graph in Pre-Trained
    Transformers", CVPR 2024, arXiv 2305.17328. Each head votes `s <- A^T s` with the whole attention `A (B, H, N, N)`,
    protected tokens included; a token's importance `(B, N)` is the root mean square of `s` over the heads that pass
    a filter on the variance of `s`.

    1. I': importance after one vote, nothing is dropped.
    2. S: of the N // 2 least important tokens, those whose mean key is most similar (cosine) to one of the others
       are dropped, their match stays as it is.
    3. I: the rows and columns of these are deleted from `A`, rows normalised again, and the tokens of least importance
       after T votes dropped: 40 in the first quarter of the layers, 8 in the middle, 1 in the last quarter (in the
       paper 30 to 50, 5 to 10, 1).

    The paper's text leaves open, and so our definition: the filter sees scores scaled to mean 1 over the image tokens
    that are left (as a distribution they could never pass the paper's thresholds), and where no head passes, all do; S
    compares keys that are means over heads. The paper searches layers and the parts of S and I for each model. Here S
    drops alone in every second layer: with half of the tokens left to I, DINOv2 ViT-S/14 lost more than by dropping at
    random. Departures: no test for convergence,
    which would wait for the device; importance is rounded to 2^-16 of its mean, so that ties do not depend on the order
    of summation; the lower index counts as more important. For restoring (not in the paper), what S dropped is stood
    for by its match, or by what stands for that; what I dropped by the kept token with the most similar key.

    Needs the whole attention in the layers that prune: fused attention is of no use there, and 40 votes of I are 40
    matrix-vector products one after the other.

    Args:
        start: "cls" gives the class token sqrt(N) times the mass of any other token before the votes (where there is
            one); "uniform" the same to all.
        similarity: the part of the dropped tokens that S drops, in [0, 1]; the odd one, and more than N // 2, is left
            to I. 0.5 splits them evenly.
        iterations: votes in every layer; None: by depth, as above.
        variance_min, variance_max: a head counts if its variance lies between these.
        inherit: the token that stands for a dropped one takes over its size, so that attention counts it as before;
            False: the size is lost, as in the paper.
    """

    start: str = "cls"
    similarity: float = 1.0
    iterations: int | None = None
    variance_min: float = 0.01
    variance_max: float = 0.7
    inherit: bool = True

    name: ClassVar[str] = "zero_tprune"
    kind: ClassVar[str] = "pruning"
    paper: ClassVar[str] = "arXiv 2305.17328"
    year: ClassVar[int] = 2024
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = "its specification; its authors published no code"
    former: ClassVar[Mapping[str, Any]] = {"inherit": False}
    needs: ClassVar[frozenset[str]] = frozenset({"attention", "mean_keys"})
    placement: ClassVar[str] = "post"
    shape: ClassVar[str] = "alternate"

    def __post_init__(self) -> None:
        check_option("start", self.start, ("cls", "uniform"))
        check_option("inherit", self.inherit, bool)
        for option in ("similarity", "variance_min", "variance_max"):
            value = getattr(self, option)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise InvalidTypeError(f"option {option} is {value!r}; it must be a number")
        if not 0 <= self.similarity <= 1:
            raise InvalidValueError(f"option similarity is {self.similarity}; it is a part, in [0, 1]")
        if not 0 <= self.variance_min <= self.variance_max:
            raise InvalidValueError(
                f"options variance_min and variance_max are {self.variance_min} and {self.variance_max}; "
                "valid: 0 <= variance_min <= variance_max"
            )
        check_count("iterations", self.iterations, optional=True)

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        n, removed = tokens.count, tokens.count - keep
        similar = min(n // 2, int(removed * self.similarity + 1e-9))
        attention, keys = tokens.attention, tokens.mean_keys
        alive = torch.ones(attention.shape[0], n, dtype=attention.dtype, device=attention.device)
        if similar:
            order = stable_order(self._importance(tokens, attention, alive, 1), 1, descending=True)
            dropped, match = match_unimportant(keys, order, similar)
            alive = alive.scatter(1, dropped, 0.0)
        if similar < removed:
            importance = self._importance(tokens, attention, alive, self._votes(tokens.layer, tokens.depth))
            order = stable_order(torch.where(alive > 0, importance, -1.0), 1, descending=True)
        else:
            order = stable_order(alive, 1, descending=True)
        kept = order[:, :keep].sort(dim=1).values
        dest = nearest_kept(keys, kept).scatter(1, kept, counting(keep, kept.device).expand_as(kept))
        if similar:
            dest = dest.scatter(1, dropped, dest.gather(1, match))
        return keep_tokens(kept, dest, self.inherit)

    def work(self, step: Step) -> int:
        removed, half = step.n - step.keep, step.n // 2
        similar = min(half, int(removed * self.similarity + 1e-9))
        products = 0  # of the attention with a vector: one more than votes
        if similar:
            products += 2
        if similar < removed:
            products += self._votes(step.layer, step.depth) + 1
        ranking = products * step.heads * (step.prefix + step.n + step.suffix) ** 2
        matching = half * (step.n - half) * step.head_dim if similar else 0
        return step.attention + ranking + matching + step.nearest_kept(step.head_dim)

    def _votes(self, layer: int, depth: int) -> int:
        if self.iterations is not None:
            return self.iterations
        quarter = (depth + 3) // 4
        return 40 if layer < quarter else 1 if layer >= depth - quarter else 8

    def _importance(self, tokens: Tokens, attention: Tensor, alive: Tensor, votes: int) -> Tensor:
        """Importance `(B, N)` of the image tokens, mean about 1; 0 for those that are not `alive (B, N)`."""
        nodes = torch.cat([alive.new_ones(alive.shape[0], tokens.prefix), alive], 1)
        nodes = torch.cat([nodes, alive.new_ones(alive.shape[0], tokens.suffix)], 1)
        # The first register of a model without class token is no class token.
        boost = self.start == "cls" and tokens.prefix > 0 and tokens.has("class_attention")
        scores = page_rank(attention, nodes, first_mass(nodes, boost), votes)
        image = scores[..., tokens.prefix : tokens.prefix + tokens.count]
        left = alive.sum(1)[:, None, None]
        scaled = image * left / image.sum(-1, keepdim=True).clamp_min(1e-12)
        variance = ((scaled - 1).square() * alive[:, None]).sum(-1, keepdim=True) / left
        passed = ((variance >= self.variance_min) & (variance <= self.variance_max)).float()
        passed = torch.where(passed.sum(1, keepdim=True) > 0, passed, 1.0)
        importance = ((passed * image.square()).sum(1) / passed.sum(1)).sqrt()
        return (importance * nodes.sum(1, keepdim=True) * 2**16).round() / 2**16


def first_mass(nodes: Tensor, boost: bool) -> Tensor:
    """The mass `(B, N)` before the votes, sum 1, of `nodes (B, N)`, 1 or 0; with `boost` the first one's is sqrt(N)
    times any other's."""
    count = nodes.sum(1, keepdim=True)
    if not boost:
        return nodes / count
    return torch.cat([count.sqrt(), nodes[:, 1:]], 1) / (count - 1 + count.sqrt())


def page_rank(attention: Tensor, nodes: Tensor, start: Tensor, votes: int) -> Tensor:
    """Scores `(B, H, N)` after `votes` rounds of `s <- A^T s` from `start (B, N)`.

    `A (B, H, N, N)` is the attention without the rows and columns where `nodes (B, N)` is 0, rows summing to 1.
    """
    # Deleted nodes lose their mass instead of their rows and columns: those differ per image, and A is large.
    held = (attention @ nodes[:, None, :, None])[..., 0].clamp_min(1e-12)
    scores = start[:, None].expand(held.shape)
    for _ in range(votes):
        scores = ((scores / held)[..., None, :] @ attention)[..., 0, :] * nodes[:, None]
    return scores


def match_unimportant(keys: Tensor, order: Tensor, removed: int) -> tuple[Tensor, Tensor]:
    """`(B, removed)` each: the tokens of the less important half most similar to one of the others, and that one.

    Args:
        keys: `(B, N, d)`, compared by cosine.
        order: `(B, N)`, tokens by descending importance; the last N // 2 may be removed.
    """
    n = order.shape[1]
    targets, sources = order[:, : n - n // 2].sort(dim=1).values, order[:, n - n // 2 :].sort(dim=1).values
    unit = normalised(keys)
    a, b = (unit.gather(1, half[..., None].expand(-1, -1, unit.shape[-1])) for half in (sources, targets))
    best, match = (a @ b.transpose(1, 2)).max(-1)
    chosen = stable_order(best, 1, descending=True)[:, :removed]
    return sources.gather(1, chosen), targets.gather(1, match.gather(1, chosen))

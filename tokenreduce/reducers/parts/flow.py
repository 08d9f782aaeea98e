"""The map of tokens that flow into a few kept ones each: only what moves is added, no share matrix multiplied."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.maps.lazy import when_asked
from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.constants import counting
from tokenreduce.ops.products import one_hot
from tokenreduce.ops.rows import scatter_rows, scatter_sums, summing, take


class Flow(TokenMap):
    """The map that keeps some tokens as they are and lets every other one flow into T of them.

    Args:
        rep: `(B, M)`, the kept tokens in ascending order, which is that of outputs.
        sources: `(B, R)`, all others.
        onto: `(B, R, T)`, the outputs that a source flows to, all different.
        part: `(B, R, T)`, its shares in them.
        back: `(B, R, T)`, what a source is restored from them by; rows sum to 1.
    """

    rep: Tensor
    sources: Tensor
    ascending = True

    def __init__(self, rep: Tensor, sources: Tensor, onto: Tensor, part: Tensor, back: Tensor) -> None:
        self.count, self.drops, self.divide, self.fused = rep.shape[1], False, True, False
        self.dest = self.weight = self.size_weight = self.gain = self.grid = None
        self.rep, self.sources, self.onto, self.part, self.back = rep, sources, onto, part, back

    @property
    def entered(self) -> int:
        return self.count + self.onto.shape[1]

    @property
    def batch(self) -> int:
        return self.onto.shape[0]

    @when_asked
    def share(self) -> Tensor:
        """`(B, M, N)`, for those who want it whole."""
        return self._rows(self.part).transpose(1, 2)

    @when_asked
    def undo(self) -> Tensor:
        """`(B, N, M)`."""
        return self._rows(self.back)

    def merge(
        self, x: Tensor, sizes: Tensor | None = None, prefix: int = 0, suffix: int = 0
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.apply(x, sizes, prefix, suffix), self.sizes(sizes), None

    def apply(self, x: Tensor, sizes: Tensor | None = None, prefix: int = 0, suffix: int = 0) -> Tensor:
        end, target = x.shape[1] - suffix, self.onto.flatten(1)
        # Each output moves towards what flows in, by its part of the mass: exact where all are equal.
        part = (self._moved(sizes).flatten(1) / self.sizes(sizes).gather(1, target).clamp_min(1e-12))[..., None]
        kept = summing(take(x, self.rep + prefix))
        brought = take(summing(x), (self.sources + prefix).repeat_interleave(self.onto.shape[2], 1))
        image = scatter_rows(kept.clone(), target, (brought - take(kept, target)) * part.to(kept.dtype)).to(x.dtype)
        return torch.cat([x[:, :prefix], image, x[:, end:]], 1) if prefix or suffix else image

    def sizes(self, sizes: Tensor | None = None) -> Tensor:
        own = torch.ones_like(self.rep, dtype=torch.float32) if sizes is None else sizes.gather(1, self.rep)
        return scatter_sums(own, self.onto.flatten(1), self._moved(sizes).flatten(1))

    def restore(self, y: Tensor, prefix: int = 0, suffix: int = 0) -> Tensor:
        end, times = prefix + self.count, self.onto.shape[2]
        kept = summing(y[:, prefix:end])
        mixed = take(kept, self.onto.flatten(1)) * self.back.flatten(1)[..., None].to(kept.dtype)
        restored = torch.stack([mixed[:, i::times] for i in range(times)]).sum(0)
        image = take(torch.cat([kept, restored], 1).to(y.dtype), self._places())
        return torch.cat([y[:, :prefix], image, y[:, end:]], 1) if prefix or suffix else image

    def _moved(self, sizes: Tensor | None) -> Tensor:
        """What each source brings to each of its outputs, `(B, R, T)`."""
        return self.part if sizes is None else self.part * sizes.gather(1, self.sources)[..., None]

    def _rows(self, part: Tensor) -> Tensor:
        """`(B, N, M)`: 1 for a kept token at its output, `part (B, R, T)` of the others at theirs."""
        outputs = counting(self.count, part.device).expand(self.batch, -1)
        empty = torch.zeros(self.batch, self.onto.shape[1], self.count, device=part.device)
        rows = torch.cat([one_hot(outputs, self.count), empty.scatter(2, self.onto, part)], 1)
        return rows.gather(1, self._places()[..., None].expand(-1, -1, self.count))

    def _places(self) -> Tensor:
        """`(B, N)`: where each token stands among the kept ones, then the others."""
        order = torch.cat([self.rep, self.sources], 1)
        return torch.zeros_like(order).scatter(1, order, counting(order.shape[1], order.device).expand_as(order))

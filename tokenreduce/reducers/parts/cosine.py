"""Directions of tokens, and who points the same way."""

from __future__ import annotations

from torch import Tensor


def normalised(metric: Tensor) -> Tensor:
    """Rows of length 1; zero rows stay zero."""
    return metric / metric.norm(dim=-1, keepdim=True).clamp_min(1e-6)


def nearest_kept(metric: Tensor, kept: Tensor) -> Tensor:
    """`(B, N)`: for every token which of `kept (B, M)` has the most similar `metric (B, N, d)`."""
    unit = normalised(metric)
    chosen = unit.gather(1, kept[..., None].expand(-1, -1, unit.shape[-1]))
    return (unit @ chosen.transpose(1, 2)).argmax(-1)

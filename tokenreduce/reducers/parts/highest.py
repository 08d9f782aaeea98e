"""Keeping tokens in raster order before a language model, in which nobody restores those that left."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.maps.token_map import TokenMap, keep_tokens
from tokenreduce.ops.order import stable_order


def keep_highest(scores: Tensor, keep: int) -> TokenMap:
    """The map that keeps the `keep` highest of `scores (B, N)`, of equals the lower index, see `keep_in_order`."""
    return keep_in_order(stable_order(scores, 1, descending=True)[:, :keep], scores.shape[1])


def keep_in_order(kept: Tensor, entered: int) -> TokenMap:
    """The map that keeps `kept (B, M)` of so many tokens in raster order.

    The kept token before it stands for each dropped one, as the outputs of a language model show.
    """
    kept = kept.sort(dim=1).values
    none = torch.zeros(kept.shape[0], entered, dtype=torch.long, device=kept.device)
    return keep_tokens(kept, (none.scatter(1, kept, 1).cumsum(1) - 1).clamp_min(0))

"""Keeping the tokens with the highest scores before a language model, in which nobody restores those that left."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.maps.token_map import TokenMap, keep_tokens
from tokenreduce.ops.order import stable_order


def keep_highest(scores: Tensor, keep: int) -> TokenMap:
    """The map that keeps the `keep` highest of `scores (B, N)` in raster order, of equals the lower index.

    The kept token before it stands for each dropped one, as the outputs of a language model show.
    """
    kept = stable_order(scores, 1, descending=True)[:, :keep].sort(dim=1).values
    is_kept = torch.zeros_like(scores, dtype=torch.long).scatter(1, kept, 1)
    return keep_tokens(kept, (is_kept.cumsum(1) - 1).clamp_min(0))

"""What kernels take and give: rows without gaps, and maps that are still to be written."""

from __future__ import annotations

import torch
from torch import Tensor


def in_a_row(x: Tensor) -> Tensor:
    """`x` if the numbers of its last axis follow each other, as kernels read them, else a copy in which they do."""
    return x if x.stride(-1) == 1 else x.contiguous()


def empty_maps(like: Tensor, n: int, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """`dest (B, N)`, `rep (B, M)` and `sources (B, N - M)` of n tokens that become `keep`, on the device of `like`."""
    dest, rep, sources = (
        torch.empty(like.shape[0], count, dtype=torch.int64, device=like.device) for count in (n, keep, n - keep)
    )
    return dest, rep, sources

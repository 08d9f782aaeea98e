"""Position embeddings for another grid than they were made for."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def resized_positions(table: Tensor, before: tuple[int, int], after: tuple[int, int]) -> Tensor:
    """`(1, H' W', C)` for the grid `after` (H', W'), bicubic, from `table (1, H W, C)` of the grid `before` (H, W)."""
    if before == after:
        return table
    grid = table.transpose(1, 2).unflatten(2, before).float()
    grid = F.interpolate(grid, after, mode="bicubic", align_corners=False)
    return grid.flatten(2).transpose(1, 2).to(table.dtype)


def resized_with_class(table: Tensor, before: tuple[int, int], after: tuple[int, int], middle: bool) -> Tensor:
    """The same of a table `(1, H W + 1, C)` whose row for the class token stands first or, if `middle`, between the two
    halves of the others, and does so afterwards."""
    old, new = (before[0] * before[1] // 2, after[0] * after[1] // 2) if middle else (0, 0)
    others = torch.cat([table[:, :old], table[:, old + 1 :]], 1)
    others = resized_positions(others, before, after)
    return torch.cat([others[:, :new], table[:, old : old + 1], others[:, new:]], 1)

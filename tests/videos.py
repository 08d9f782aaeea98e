"""Videos in which something repeats."""

from __future__ import annotations

import torch
from backbones import PATCH, Backbone, Inputs
from torch import Tensor


def some_video(seed: int, batch: int, steps: int, rows: int, columns: int, kind: str, sides: tuple[int, ...]) -> Tensor:
    """`(B, 3, frames, height, width)` in which some tubelets repeat the one before; "ties": with few exact values;
    "steady": no tubelet changes within itself, so that those that repeat are equal."""
    g = torch.Generator().manual_seed(seed)
    f, h, w = sides
    cells = torch.randn(batch, 3, steps, f, rows, h, columns, w, generator=g)
    if kind == "ties":
        cells = torch.randint(0, 3, (batch, 1, steps, 1, rows, 1, columns, 1), generator=g).float().expand_as(cells)
    if kind == "steady":
        cells = cells[:, :, :, :1].expand_as(cells)
    for t in range(1, steps):
        same = torch.rand(batch, 1, 1, rows, 1, columns, 1, generator=g) < 0.5
        still = cells[:, :, t - 1, :1].expand_as(cells[:, :, t])
        cells = torch.cat(
            [cells[:, :, :t], torch.where(same, still, cells[:, :, t])[:, :, None], cells[:, :, t + 1 :]], 2
        )
    return cells.reshape(batch, 3, steps * f, rows * h, columns * w)


def moving(backbone: Backbone, batch: int = 3, seed: int = 0, kind: str = "random") -> Inputs:
    """The arguments of a backbone for such videos, with tubelets of PATCH frames."""
    return backbone.given(some_video(seed, batch, *backbone.grid, kind, (PATCH, PATCH, PATCH)))

"""transformers Qwen2.5-VL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from ._qwen import QwenAdapter


class TransformersQwen25VL(QwenAdapter):
    name = "transformers_qwen2_5_vl"
    models = (Qwen2_5_VLModel,)
    within = True

    def in_order(self, model: Any, received: Tensor, grids: Sequence[tuple[int, ...]]) -> Tensor:
        """Its tower has the tokens of a window together."""
        config = model.config.vision_config
        window = config.window_size // config.patch_size // config.spatial_merge_size
        parts = received.split([frames * height * width for frames, height, width in grids])
        order = [windows(grid, window).argsort(stable=True).argsort() for grid in grids]
        return torch.cat([part[places.to(part.device)] for part, places in zip(parts, order, strict=True)])


def windows(grid: tuple[int, ...], side: int) -> Tensor:
    """`(T H W,)`: the number of the window of each token of a grid `(T, H, W)`, windows row by row."""
    frames, rows, columns = (torch.arange(length) for length in grid)
    across = columns // side
    return (((frames * grid[1])[:, None] + rows // side)[..., None] * grid[2] + across).flatten()


ADAPTER = TransformersQwen25VL()

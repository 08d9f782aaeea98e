"""What the Qwen-VL families share: images and videos of any size, merged 2 x 2, at positions of time, height and
width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from tokenreduce.forward.language.units import Facts

from ._adapter import NO_CLASS_TOKEN, VisionLanguageAdapter
from ._tower import Encoded


class QwenAdapter(VisionLanguageAdapter):
    tower = "visual"
    pixels: ClassVar[dict[str, str]] = {"image": "pixel_values", "video": "pixel_values_videos"}
    hands_on = True
    rotates_in_3d = True

    def lacks(self, model: Any) -> dict[str, str]:
        return NO_CLASS_TOKEN

    def shows(self, model: Any) -> frozenset[str]:
        return frozenset({"received_attention"})

    def facts(self, model: Any, encoded: Encoded, lengths: Sequence[int]) -> Sequence[Facts]:
        side = model.config.vision_config.spatial_merge_size
        merged = [(frames, height // side, width // side) for frames, height, width in encoded.grids]
        grids = [grid[1:] if grid[0] == 1 else grid for grid in merged]
        if encoded.received_attention is None:
            return [Facts(grid) for grid in grids]
        received = self.in_order(model, encoded.received_attention.view(-1, side**2).mean(1), merged)
        parts = received.split([math.prod(grid) for grid in grids])
        return [Facts(grid, received_attention=part) for grid, part in zip(grids, parts, strict=True)]

    def in_order(self, model: Any, received: Tensor, grids: Sequence[tuple[int, ...]]) -> Tensor:
        """`received (tokens,)`, of merged tokens as the tower has them, image by image, in raster order."""
        return received

    def receiving(self, model: Any) -> Sequence[nn.Module]:
        """The last attention in which a token sees all of its image, or of its frame of a video."""
        tower = model.get_submodule(self.tower)
        whole = getattr(tower, "fullatt_block_indexes", None)
        return [tower.blocks[max(whole) if whole else -1].attn]

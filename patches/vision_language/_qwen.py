"""What the Qwen-VL families share: images and videos of any size, merged 2 x 2, at positions of time, height and
width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from tokenreduce.forward.language.units import Facts

from ._adapter import VisionLanguageAdapter
from ._tower import Encoded


class QwenAdapter(VisionLanguageAdapter):
    tower = "visual"
    pixels: ClassVar[dict[str, str]] = {"image": "pixel_values", "video": "pixel_values_videos"}
    hands_on = True
    rotates_in_3d = True

    def lacks(self, model: Any) -> dict[str, str]:
        return {"class_attention": "its vision tower has no class token"}

    def facts(self, model: Any, encoded: Encoded, lengths: Sequence[int]) -> Sequence[Facts]:
        side = model.config.vision_config.spatial_merge_size
        merged = [(frames, height // side, width // side) for frames, height, width in encoded.grids]
        return [Facts(grid[1:] if grid[0] == 1 else grid) for grid in merged]

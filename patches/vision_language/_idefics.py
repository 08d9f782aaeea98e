"""What SmolVLM and Idefics 3 share: features of one prompt stand in one entry, crop by crop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenreduce.forward.language.units import Facts

from ._adapter import VisionLanguageAdapter
from ._tower import Encoded


class IdeficsAdapter(VisionLanguageAdapter):
    tower = "vision_model"
    language = "text_model"
    within = True

    def lengths(self, model: Any, parts: Sequence[Any]) -> list[int]:
        return [model.image_seq_len] * (sum(map(len, parts)) // model.image_seq_len)

    def lacks(self, model: Any) -> dict[str, str]:
        return {"class_attention": "its vision tower has no class token"}

    def facts(self, model: Any, encoded: Encoded, lengths: Sequence[int]) -> Sequence[Facts]:
        vision = model.config.vision_config
        side = vision.image_size // vision.patch_size // model.config.scale_factor
        return [Facts((side, side))] * len(lengths)

"""What SmolVLM and Idefics 3 share: features of one prompt stand in one entry, crop by crop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from tokenreduce.forward.language.units import Facts

from ._adapter import NO_CLASS_TOKEN, VisionLanguageAdapter
from ._tower import Encoded, behind, projections


class IdeficsAdapter(VisionLanguageAdapter):
    tower = "vision_model"
    language = "text_model"
    within = True

    def lengths(self, model: Any, parts: Sequence[Any]) -> list[int]:
        return [model.image_seq_len] * (sum(map(len, parts)) // model.image_seq_len)

    def lacks(self, model: Any) -> dict[str, str]:
        return NO_CLASS_TOKEN

    def facts(self, model: Any, encoded: Encoded, lengths: Sequence[int]) -> Sequence[Facts]:
        vision = model.config.vision_config
        patches, group = vision.image_size // vision.patch_size, model.config.scale_factor
        received = behind(encoded.received_attention, 0, (patches, patches), group)
        grid = (patches // group, patches // group)
        return [Facts(grid, received_attention=row) for _, row in zip(lengths, received, strict=False)]

    def shows(self, model: Any) -> frozenset[str]:
        return frozenset({"received_attention"})

    def showing(self, model: Any) -> Sequence[nn.Module]:
        return projections(model.vision_model.encoder.layers[-1:])

"""transformers Gemma 3: tokens of an image see each other, and most layers have a window; the masks say both."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Any

from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3Model

from tokenreduce.forward.language.units import Facts

from ._adapter import NO_CLASS_TOKEN, VisionLanguageAdapter
from ._tower import Encoded, behind, is_siglip, projections


class TransformersGemma3(VisionLanguageAdapter):
    name = "transformers_gemma3"
    models = (Gemma3Model,)
    tower = "vision_tower"
    masks_outside = True

    def lacks(self, model: Any) -> dict[str, str]:
        return NO_CLASS_TOKEN

    def facts(self, model: Any, encoded: Encoded, lengths: Sequence[int]) -> Sequence[Facts]:
        vision, tokens = model.config.vision_config, isqrt(model.config.mm_tokens_per_image)
        side = vision.image_size // vision.patch_size
        received = behind(encoded.received_attention, 0, (side, side), side // tokens)
        grids = [(isqrt(length), isqrt(length)) for length in lengths]
        return [Facts(grid, received_attention=row) for grid, row in zip(grids, received, strict=False)]

    def shows(self, model: Any) -> frozenset[str]:
        return frozenset({"received_attention"} if is_siglip(model) else ())

    def showing(self, model: Any) -> Sequence[nn.Module]:
        return projections(model.vision_tower.encoder.layers[-1:]) if is_siglip(model) else ()


ADAPTER = TransformersGemma3()

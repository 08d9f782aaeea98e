"""transformers Gemma 3: tokens of an image see each other, and most layers have a window; the masks say both."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Any

from transformers.models.gemma3.modeling_gemma3 import Gemma3Model

from tokenreduce.forward.language.units import Facts

from ._adapter import VisionLanguageAdapter
from ._tower import Encoded


class TransformersGemma3(VisionLanguageAdapter):
    name = "transformers_gemma3"
    models = (Gemma3Model,)
    tower = "vision_tower"
    masks_outside = True

    def lacks(self, model: Any) -> dict[str, str]:
        return {"class_attention": "its vision tower has no class token"}

    def facts(self, model: Any, encoded: Encoded, lengths: Sequence[int]) -> Sequence[Facts]:
        return [Facts((isqrt(length), isqrt(length))) for length in lengths]


ADAPTER = TransformersGemma3()

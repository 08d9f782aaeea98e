"""transformers Gemma 4: images of any size, masks made outside, and for each word something that enters every layer."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers.models.gemma4.modeling_gemma4 import Gemma4Model

from tokenreduce.forward.language.passage import Passage
from tokenreduce.forward.language.planning import Removal

from ._adapter import VisionLanguageAdapter


class TransformersGemma4(VisionLanguageAdapter):
    name = "transformers_gemma4"
    models = (Gemma4Model,)
    tower = "vision_tower"
    pixels: ClassVar[dict[str, str]] = {"image": "pixel_values", "video": "pixel_values_videos"}
    masks_outside = True

    def rows(self, given: dict[str, Any], removal: Removal, passage: Passage) -> dict[str, Any]:
        every = given.get("per_layer_inputs")  # of words; those of all placeholders are the same
        if every is None:
            return {}
        return {"per_layer_inputs": passage.rows(every.flatten(2)).unflatten(2, every.shape[2:])}


ADAPTER = TransformersGemma4()

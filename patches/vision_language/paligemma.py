"""transformers PaliGemma: tokens of the prompt see each other, and the mask says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers.models.paligemma.modeling_paligemma import PaliGemmaModel

from tokenreduce.errors import InvalidValueError
from tokenreduce.forward.language.units import Facts

from ._adapter import VisionLanguageAdapter
from ._tower import Encoded


class TransformersPaliGemma(VisionLanguageAdapter):
    name = "transformers_paligemma"
    models = (PaliGemmaModel,)
    tower = "vision_tower"
    masks_outside = True

    def lacks(self, model: Any) -> dict[str, str]:
        return {"class_attention": "its vision tower has no class token"}

    def facts(self, model: Any, encoded: Encoded, lengths: Sequence[int]) -> Sequence[Facts]:
        side = model.config.vision_config.image_size // model.config.vision_config.patch_size
        return [Facts((side, side))] * len(lengths)

    def encoded(self, model: Any, given: dict[str, Any]) -> dict[str, Any]:
        cache = given.get("past_key_values")
        later = cache is not None and cache.is_initialized
        if later and given.get("pixel_values") is not None and given.get("token_type_ids") is not None:
            raise InvalidValueError(
                "tokens of a later prompt see each other in PaliGemma only where it encodes an image at once, which a "
                "reduced model does before; leave token_type_ids out, as generate does, or give both prompts as one"
            )
        return super().encoded(model, given)


ADAPTER = TransformersPaliGemma()

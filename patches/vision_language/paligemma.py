"""transformers PaliGemma: tokens of the prompt see each other, and the mask says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers.models.paligemma.modeling_paligemma import PaliGemmaModel

from tokenreduce.errors import InvalidValueError
from tokenreduce.forward.language.units import Facts

from ._adapter import NO_CLASS_TOKEN, VisionLanguageAdapter
from ._tower import Encoded, behind, is_siglip, projections


class TransformersPaliGemma(VisionLanguageAdapter):
    name = "transformers_paligemma"
    models = (PaliGemmaModel,)
    tower = "vision_tower"
    masks_outside = True

    def lacks(self, model: Any) -> dict[str, str]:
        return NO_CLASS_TOKEN

    def facts(self, model: Any, encoded: Encoded, lengths: Sequence[int]) -> Sequence[Facts]:
        side = model.config.vision_config.image_size // model.config.vision_config.patch_size
        received = behind(encoded.received_attention, 0, (side, side))
        return [Facts((side, side), received_attention=row) for _, row in zip(lengths, received, strict=False)]

    def shows(self, model: Any) -> frozenset[str]:
        return frozenset({"received_attention"} if is_siglip(model) else ())

    def showing(self, model: Any) -> Sequence[nn.Module]:
        return projections(model.vision_tower.encoder.layers[-1:]) if is_siglip(model) else ()

    def encoded(self, model: Any, given: dict[str, Any]) -> dict[str, Any]:
        cache = given.get("past_key_values")
        later = cache is not None and cache.is_initialized
        if later and given.get("pixel_values") is not None and given.get("token_type_ids") is not None:
            raise InvalidValueError(
                "PaliGemma lets the tokens of a later prompt see each other only if it is given pixels, and a patched "
                "model encodes them before the call; leave token_type_ids out, as generate does, or give both prompts "
                "as one"
            )
        return super().encoded(model, given)


ADAPTER = TransformersPaliGemma()

"""transformers Mistral 3: images of any size, merged 2 x 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers.models.mistral3.modeling_mistral3 import Mistral3Model

from tokenreduce.forward.language.units import Facts

from ._adapter import NO_CLASS_TOKEN, VisionLanguageAdapter
from ._tower import Encoded


class TransformersMistral3(VisionLanguageAdapter):
    name = "transformers_mistral3"
    models = (Mistral3Model,)
    tower = "vision_tower"
    within = True

    def lacks(self, model: Any) -> dict[str, str]:
        return NO_CLASS_TOKEN

    def facts(self, model: Any, encoded: Encoded, lengths: Sequence[int]) -> Sequence[Facts]:
        side = model.config.vision_config.patch_size * model.config.spatial_merge_size
        return [Facts((height // side, width // side)) for height, width in encoded.sizes]


ADAPTER = TransformersMistral3()

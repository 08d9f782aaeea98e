"""transformers LLaVA: every image has the tower's patches, or those of its own size (Pixtral)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers.models.llava.modeling_llava import LlavaModel

from tokenreduce.forward.language.units import Grid

from ._adapter import VisionLanguageAdapter
from ._hooks import Encoded


class TransformersLlava(VisionLanguageAdapter):
    name = "transformers_llava"
    models = (LlavaModel,)
    tower = "vision_tower"

    def side(self, model: Any) -> int:
        """Patches along a side of each image; 0 where images keep their sizes, or a row of no patch is among theirs."""
        vision = model.config.vision_config
        if vision.model_type == "pixtral" or model.config.vision_feature_select_strategy == "full":
            return 0
        return vision.image_size // vision.patch_size

    def lacks(self, model: Any) -> dict[str, str]:
        return {} if self.side(model) else super().lacks(model)

    def grids(self, model: Any, encoded: Encoded, lengths: Sequence[int]) -> Sequence[Grid | None]:
        side = self.side(model)
        return [(side, side) if side and length == side**2 else None for length in lengths]


ADAPTER = TransformersLlava()

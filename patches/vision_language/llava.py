"""transformers LLaVA: every image has the tower's patches, or those of its own size (Pixtral)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers.models.llava.modeling_llava import LlavaModel

from tokenreduce.forward.language.units import Facts

from ._adapter import VisionLanguageAdapter
from ._tower import Encoded, layers_taken


class TransformersLlava(VisionLanguageAdapter):
    name = "transformers_llava"
    models = (LlavaModel,)
    tower = "vision_tower"
    within = True

    def side(self, model: Any) -> int:
        """Patches along a side of each image; 0 where images keep their sizes, or a row of no patch is among theirs."""
        vision = model.config.vision_config
        if vision.model_type == "pixtral" or model.config.vision_feature_select_strategy == "full":
            return 0
        return vision.image_size // vision.patch_size

    def lacks(self, model: Any) -> dict[str, str]:
        lacks = super().lacks(model)
        if not self.side(model):
            return lacks
        return (
            {}
            if model.config.vision_config.model_type == "clip_vision_model"
            else {"class_attention": lacks["class_attention"]}
        )

    def facts(self, model: Any, encoded: Encoded, lengths: Sequence[int]) -> Sequence[Facts]:
        side = self.side(model)
        grids = [(side, side) if side and length == side**2 else None for length in lengths]
        if encoded.class_attention is None:
            return [Facts(grid) for grid in grids]
        return [Facts(grid, row[1:]) for grid, row in zip(grids, encoded.class_attention, strict=False)]

    def showing(self, model: Any) -> Sequence[nn.Module]:
        shown = layers_taken(model.config.vision_feature_layer, model.vision_tower.encoder.layers)
        return [projection for layer in shown for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj)]


ADAPTER = TransformersLlava()

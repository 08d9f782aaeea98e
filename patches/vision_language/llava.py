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

    def lacks(self, model: Any) -> dict[str, str]:
        vision, lacks = model.config.vision_config.model_type, super().lacks(model)
        if vision != "pixtral" and model.config.vision_feature_select_strategy == "full":
            return lacks  # a row of no patch may be among theirs
        return {} if vision == "clip_vision_model" else {"class_attention": lacks["class_attention"]}

    def facts(self, model: Any, encoded: Encoded, lengths: Sequence[int]) -> Sequence[Facts]:
        patch = model.config.vision_config.patch_size
        if encoded.sizes:  # of the images as they were encoded, which beams repeat
            return [Facts((height // patch, width // patch)) for height, width in encoded.sizes]
        side = model.config.vision_config.image_size // patch
        grids = [(side, side) if length == side**2 else None for length in lengths]
        if encoded.class_attention is None:
            return [Facts(grid) for grid in grids]
        return [Facts(grid, row[1:]) for grid, row in zip(grids, encoded.class_attention, strict=False)]

    def showing(self, model: Any) -> Sequence[nn.Module]:
        shown = layers_taken(model.config.vision_feature_layer, model.vision_tower.encoder.layers)
        return [projection for layer in shown for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj)]


ADAPTER = TransformersLlava()

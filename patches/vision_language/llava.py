"""transformers LLaVA: every image has the tower's patches, or those of its own size (Pixtral)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers.models.llava.modeling_llava import LlavaModel

from tokenreduce.forward.language.units import Facts

from ._adapter import NO_CLASS_TOKEN, VisionLanguageAdapter
from ._tower import Encoded, behind, layers_taken, projections

CLASS_IS_A_FEATURE = 'with vision_feature_select_strategy="full" its class token is one of the features that it ranks'


class TransformersLlava(VisionLanguageAdapter):
    name = "transformers_llava"
    models = (LlavaModel,)
    tower = "vision_tower"
    within = True

    def side(self, model: Any) -> int:
        """Patches along a side of each image; 0 where images keep their sizes, a row of no patch is among theirs, or a
        patch is missing."""
        vision = model.config.vision_config
        whole = model.config.vision_feature_select_strategy == "full"
        if vision.model_type == "pixtral" or whole == self.has_class_token(model):
            return 0
        return vision.image_size // vision.patch_size

    def lacks(self, model: Any) -> dict[str, str]:
        lacks, sized = super().lacks(model), model.config.vision_config.model_type == "pixtral"
        if not sized and not self.side(model):
            return lacks | ({"class_attention": CLASS_IS_A_FEATURE} if self.has_class_token(model) else {})
        return {} if self.has_class_token(model) else NO_CLASS_TOKEN

    def shows(self, model: Any) -> frozenset[str]:
        return frozenset({"received_attention"} if self.side(model) else ())

    def has_class_token(self, model: Any) -> bool:
        return bool(model.config.vision_config.model_type == "clip_vision_model")

    def facts(self, model: Any, encoded: Encoded, lengths: Sequence[int]) -> Sequence[Facts]:
        if encoded.sizes:  # of the images as they were encoded, which beams repeat
            patch = model.config.vision_config.patch_size
            return [Facts((height // patch, width // patch)) for height, width in encoded.sizes]
        side = self.side(model)
        grids = [(side, side) if side and length == side**2 else None for length in lengths]
        protected = int(self.has_class_token(model))
        rows = [behind(x, protected, (side, side)) for x in (encoded.class_attention, encoded.received_attention)]
        return [Facts(grid, *shown) for grid, *shown in zip(grids, *rows, strict=False)]

    def tower_layers(self, model: Any) -> Sequence[nn.Module]:
        return list(model.vision_tower.encoder.layers) if self.side(model) else []

    def showing(self, model: Any) -> Sequence[nn.Module]:
        return projections(layers_taken(model.config.vision_feature_layer, self.tower_layers(model)))

    def showing_all(self, model: Any) -> Sequence[nn.Module]:
        layers = list(self.tower_layers(model))
        taken = layers_taken(model.config.vision_feature_layer, layers) if layers else []
        return projections(layers[: max(map(layers.index, taken), default=-1) + 1])


ADAPTER = TransformersLlava()

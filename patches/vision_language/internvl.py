"""transformers InternVL: every crop is an image, whose tokens are 2 x 2 of the tower's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers.models.internvl.modeling_internvl import InternVLModel

from tokenreduce.forward.language.units import Facts

from ._adapter import VisionLanguageAdapter
from ._tower import Encoded, behind, layers_taken


class TransformersInternVL(VisionLanguageAdapter):
    name = "transformers_internvl"
    models = (InternVLModel,)
    tower = "vision_tower"
    within = True

    def group(self, model: Any) -> int:
        """Tokens of the tower along each side of one token."""
        return round(1 / model.config.downsample_ratio)

    def lacks(self, model: Any) -> dict[str, str]:
        return {}

    def shows(self, model: Any) -> frozenset[str]:
        return frozenset({"received_attention"})

    def facts(self, model: Any, encoded: Encoded, lengths: Sequence[int]) -> Sequence[Facts]:
        vision, group = model.config.vision_config, self.group(model)
        height, width = (n // patch for n, patch in zip(vision.image_size, vision.patch_size, strict=True))
        grid = (height // group, width // group)
        attention = (encoded.class_attention, encoded.received_attention)
        rows = [behind(x, 1, (height, width), group) for x in attention]
        return [Facts(grid, *shown) for _, *shown in zip(lengths, *rows, strict=False)]

    def tower_layers(self, model: Any) -> Sequence[nn.Module]:
        return list(model.vision_tower.encoder.layer)

    def showing(self, model: Any) -> Sequence[nn.Module]:
        shown = layers_taken(model.config.vision_feature_layer, self.tower_layers(model))
        return [norm for layer in shown for norm in (layer.attention.q_norm, layer.attention.k_norm)]


ADAPTER = TransformersInternVL()

"""transformers InternVL: every crop is an image, whose tokens are 2 x 2 of the tower's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.functional import avg_pool2d
from transformers.models.internvl.modeling_internvl import InternVLModel

from tokenreduce.forward.language.units import Facts

from ._adapter import VisionLanguageAdapter
from ._tower import Encoded, layers_taken


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

    def facts(self, model: Any, encoded: Encoded, lengths: Sequence[int]) -> Sequence[Facts]:
        vision, group = model.config.vision_config, self.group(model)
        height, width = (n // patch for n, patch in zip(vision.image_size, vision.patch_size, strict=True))
        grid = (height // group, width // group)
        if encoded.class_attention is None:
            return [Facts(grid)] * len(lengths)
        found = encoded.class_attention[:, 1:]
        if found.shape[1] == height * width:
            found = avg_pool2d(found.unflatten(1, (1, height, width)), group).flatten(1)
        return [Facts(grid, row) for row in found]

    def showing(self, model: Any) -> Sequence[nn.Module]:
        shown = layers_taken(model.config.vision_feature_layer, model.vision_tower.encoder.layer)
        return [norm for layer in shown for norm in (layer.attention.q_norm, layer.attention.k_norm)]


ADAPTER = TransformersInternVL()

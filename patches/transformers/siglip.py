"""transformers SigLIP: the vision tower, never the text tower."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer, SiglipVisionModel

from tokenreduce.budget.geometry import Geometry

from ._layers import HuggingFaceAdapter
from ._towers import TowerLayer


class ReducedSiglipEncoderLayer(TowerLayer, SiglipEncoderLayer):
    """`SiglipEncoderLayer`, reduced."""


class TransformersSiglip(HuggingFaceAdapter):
    """The vision tower ends in attention pooling, which gets restored tokens; its keys and values are made of them."""

    name = "transformers_siglip"
    models = (SiglipVisionModel,)
    layers_at = "encoder.layers"
    attention = "self_attn"
    class_tokens = 0
    reduced: ClassVar = {SiglipEncoderLayer: ReducedSiglipEncoderLayer}

    def pools(self, model: Any) -> bool:
        return model.use_head

    def geometry(self, model: Any) -> Geometry:
        geometry = super().geometry(model)
        if not self.pools(model):
            return geometry
        costs, width = geometry.costs, geometry.width
        matrices = 2 * width**2
        return replace(
            geometry,
            costs=replace(costs, fixed=costs.fixed - matrices, per_token=costs.per_token + matrices + 2 * width),
        )


ADAPTER = TransformersSiglip()

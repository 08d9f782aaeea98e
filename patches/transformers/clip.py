"""transformers CLIP: the vision tower, never the causal text tower."""

from __future__ import annotations

from typing import ClassVar

from transformers.models.clip.modeling_clip import (
    CLIPEncoderLayer,
    CLIPModel,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

from ._layers import HuggingFaceAdapter
from ._towers import TowerLayer


class ReducedCLIPEncoderLayer(TowerLayer, CLIPEncoderLayer):
    """`CLIPEncoderLayer`, reduced."""


class TransformersCLIP(HuggingFaceAdapter):
    """`CLIPForImageClassification` averages image tokens, the projections read the class token."""

    name = "transformers_clip"
    models = (CLIPVisionModel,)
    layers_at = "encoder.layers"
    attention = "self_attn"
    reduced: ClassVar = {CLIPEncoderLayer: ReducedCLIPEncoderLayer}
    reads_class_token = (CLIPModel, CLIPVisionModelWithProjection)


ADAPTER = TransformersCLIP()

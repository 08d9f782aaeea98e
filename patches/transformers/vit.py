"""transformers `ViTModel`: ViT, and the encoder of what is built on it."""

from __future__ import annotations

from typing import ClassVar

from transformers.models.vit.modeling_vit import ViTForImageClassification, ViTLayer, ViTModel

from ._layers import HuggingFaceAdapter
from ._prenorm import PrenormLayer


class ReducedViTLayer(PrenormLayer, ViTLayer):
    """The layer's two lines are those of `PrenormLayer`."""


class TransformersViT(HuggingFaceAdapter):
    name = "transformers_vit"
    models = (ViTModel,)
    reduced: ClassVar = {ViTLayer: ReducedViTLayer}
    reads_class_token = (ViTForImageClassification,)


ADAPTER = TransformersViT()

"""transformers DINOv2: `Dinov2Model` and `Dinov2Backbone`, the latter inside Depth Anything and others too."""

from __future__ import annotations

from typing import ClassVar

from transformers.models.dinov2.modeling_dinov2 import Dinov2Backbone, Dinov2Layer, Dinov2Model

from ._layers import HuggingFaceAdapter
from ._layerscale import LayerScaleLayer


class ReducedDinov2Layer(LayerScaleLayer, Dinov2Layer):
    """`Dinov2Layer`, reduced."""


class TransformersDinov2(HuggingFaceAdapter):
    """Its classifier averages image tokens: all are restored for it."""

    name = "transformers_dinov2"
    models = (Dinov2Model, Dinov2Backbone)
    layers_at = "encoder.layer"
    reduced: ClassVar = {Dinov2Layer: ReducedDinov2Layer}


ADAPTER = TransformersDinov2()

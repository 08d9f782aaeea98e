"""transformers DINOv2 with registers: `Dinov2WithRegistersModel` and `Dinov2WithRegistersBackbone`."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import (
    Dinov2WithRegistersBackbone,
    Dinov2WithRegistersLayer,
    Dinov2WithRegistersModel,
)

from ._layers import HuggingFaceAdapter
from ._layerscale import LayerScaleLayer


class ReducedDinov2WithRegistersLayer(LayerScaleLayer, Dinov2WithRegistersLayer):
    """`Dinov2WithRegistersLayer`, reduced."""


class TransformersDinov2WithRegisters(HuggingFaceAdapter):
    """Its classifier averages image tokens: all are restored for it."""

    name = "transformers_dinov2_with_registers"
    models = (Dinov2WithRegistersModel, Dinov2WithRegistersBackbone)
    layers_at = "encoder.layer"
    reduced: ClassVar = {Dinov2WithRegistersLayer: ReducedDinov2WithRegistersLayer}

    def prefix(self, model: Any) -> int:
        return 1 + model.config.num_register_tokens


ADAPTER = TransformersDinov2WithRegisters()

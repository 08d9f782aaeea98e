"""transformers DINOv2 with registers: `Dinov2WithRegistersModel` and `Dinov2WithRegistersBackbone`."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import (
    Dinov2WithRegistersBackbone,
    Dinov2WithRegistersLayer,
    Dinov2WithRegistersModel,
)

from tokenreduce.forward.run import Run

from ._layers import HuggingFaceAdapter, PretrainedLayer


class ReducedDinov2WithRegistersLayer(PretrainedLayer, Dinov2WithRegistersLayer):
    def attention_line(self, run: Run, x: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        attended = self.attention(self.norm1(x), attention_mask=run.attention_bias(x), **kwargs)[0]
        return self.drop_path(self.layer_scale1(attended)) + x

    def mlp_line(self, x: Tensor) -> Tensor:
        return self.drop_path(self.layer_scale2(self.mlp(self.norm2(x)))) + x


class TransformersDinov2WithRegisters(HuggingFaceAdapter):
    """Its classifier averages image tokens, so that tokens are restored for it."""

    name = "transformers_dinov2_with_registers"
    models = (Dinov2WithRegistersModel, Dinov2WithRegistersBackbone)
    layers_at = "encoder.layer"
    reduced: ClassVar = {Dinov2WithRegistersLayer: ReducedDinov2WithRegistersLayer}

    def prefix(self, model: Any) -> int:
        return 1 + model.config.num_register_tokens


ADAPTER = TransformersDinov2WithRegisters()

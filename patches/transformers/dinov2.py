"""transformers DINOv2: `Dinov2Model` and `Dinov2Backbone`, the latter inside Depth Anything and others too."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from transformers.models.dinov2.modeling_dinov2 import Dinov2Backbone, Dinov2Layer, Dinov2Model

from tokenreduce.forward.run import Run

from ._layers import HuggingFaceAdapter, PretrainedLayer


class ReducedDinov2Layer(PretrainedLayer, Dinov2Layer):
    def attention_line(self, run: Run, x: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        attended = self.attention(self.norm1(x), attention_mask=run.attention_bias(x), **kwargs)[0]
        return self.drop_path(self.layer_scale1(attended)) + x

    def mlp_line(self, x: Tensor) -> Tensor:
        return self.drop_path(self.layer_scale2(self.mlp(self.norm2(x)))) + x


class TransformersDinov2(HuggingFaceAdapter):
    """Its classifier averages image tokens, so that tokens are restored for it."""

    name = "transformers_dinov2"
    models = (Dinov2Model, Dinov2Backbone)
    layers_at = "encoder.layer"
    reduced: ClassVar = {Dinov2Layer: ReducedDinov2Layer}


ADAPTER = TransformersDinov2()

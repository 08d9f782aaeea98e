"""transformers CLIP: the vision tower, never the causal text tower."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from transformers.models.clip.modeling_clip import (
    CLIPEncoderLayer,
    CLIPModel,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

from tokenreduce.forward.run import Run

from ._layers import HuggingFaceAdapter, PretrainedLayer


class ReducedCLIPEncoderLayer(PretrainedLayer, CLIPEncoderLayer):
    def attention_line(self, run: Run, x: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        bias = run.attention_bias(x)
        return x + self.self_attn(hidden_states=self.layer_norm1(x), attention_mask=bias, **kwargs)[0]

    def mlp_line(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.layer_norm2(x))


class TransformersCLIP(HuggingFaceAdapter):
    """`CLIPForImageClassification` averages image tokens, the projections read the class token."""

    name = "transformers_clip"
    models = (CLIPVisionModel,)
    layers_at = "encoder.layers"
    attention = "self_attn"
    reduced: ClassVar = {CLIPEncoderLayer: ReducedCLIPEncoderLayer}
    reads_class_token = (CLIPModel, CLIPVisionModelWithProjection)


ADAPTER = TransformersCLIP()

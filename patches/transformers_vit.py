"""transformers `ViTModel`: ViT, and the encoder of what is built on it."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from transformers.models.vit.modeling_vit import ViTForImageClassification, ViTLayer, ViTModel

from tokenreduce.run import Run

from .huggingface import HuggingFaceAdapter, PretrainedLayer


class ReducedViTLayer(PretrainedLayer, ViTLayer):
    def attention_line(self, run: Run, x: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        return self.dropout(self.attention(self.layernorm_before(x), run.attention_bias(x), **kwargs)[0]) + x

    def mlp_line(self, x: Tensor) -> Tensor:
        return self.dropout(self.mlp(self.layernorm_after(x))) + x


class TransformersViT(HuggingFaceAdapter):
    name = "transformers_vit"
    models = (ViTModel,)
    reduced: ClassVar = {ViTLayer: ReducedViTLayer}
    reads_class_token = (ViTForImageClassification,)


ADAPTER = TransformersViT()

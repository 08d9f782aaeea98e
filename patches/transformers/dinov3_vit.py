"""transformers DINOv3: rotary embedding, whose rows follow the token that represents a merged one."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.models.dinov3_vit.modeling_dinov3_vit import (
    DINOv3ViTBackbone,
    DINOv3ViTLayer,
    DINOv3ViTModel,
    apply_rotary_pos_emb,
)

from tokenreduce.forward.run import Run

from ._layers import HuggingFaceAdapter
from ._layerscale import LayerScaleLayer


class ReducedDINOv3ViTLayer(LayerScaleLayer, DINOv3ViTLayer):
    def attention_line(
        self,
        run: Run,
        x: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        assert position_embeddings is not None
        cos, sin = (run.rows(table, x) for table in position_embeddings)
        bias = run.attention_bias(x)
        run.show_attention(lambda q, k: (*apply_rotary_pos_emb(q, k, cos, sin), run.attention_bias(q, torch.float32)))
        y = self.attention(self.norm1(x), attention_mask=bias, position_embeddings=(cos, sin), **kwargs)[0]
        return self.drop_path(self.layer_scale1(y)) + x


class TransformersDINOv3(HuggingFaceAdapter):
    """The library infers the number of protected tokens from the length of the rotary table: it must always have as
    many rows as there are image tokens."""

    name = "transformers_dinov3_vit"
    models = (DINOv3ViTModel, DINOv3ViTBackbone)
    layers_at = "model.layer"
    reduced: ClassVar = {DINOv3ViTLayer: ReducedDINOv3ViTLayer}
    follows_origin = True

    def prefix(self, model: Any) -> int:
        return 1 + model.config.num_register_tokens


ADAPTER = TransformersDINOv3()

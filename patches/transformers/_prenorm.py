"""`PrenormLayer`: the two lines of transformers' plain ViT layer, which DeiT, ViT-MAE and ViViT have too."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tokenreduce.forward.run import Run

from ._layers import PretrainedLayer


class PrenormLayer(PretrainedLayer):
    layernorm_before: Any
    layernorm_after: Any
    attention: Any
    mlp: Any
    dropout: Any

    def attention_line(self, run: Run, x: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        return self.dropout(self.attention(self.layernorm_before(x), run.attention_bias(x), **kwargs)[0]) + x

    def mlp_line(self, x: Tensor) -> Tensor:
        return self.dropout(self.mlp(self.layernorm_after(x))) + x

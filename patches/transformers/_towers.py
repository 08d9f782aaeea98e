"""`TowerLayer`: the two lines of the layers of CLIP's vision tower, which SigLIP and SigLIP 2 have too."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tokenreduce.forward.run import Run

from ._layers import PretrainedLayer


class TowerLayer(PretrainedLayer):
    layer_norm1: Any
    layer_norm2: Any
    self_attn: Any
    mlp: Any

    def attention_line(self, run: Run, x: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        bias = run.attention_bias(x)
        return x + self.self_attn(hidden_states=self.layer_norm1(x), attention_mask=bias, **kwargs)[0]

    def mlp_line(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.layer_norm2(x))

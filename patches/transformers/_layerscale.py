"""`LayerScaleLayer`: the two lines of DINOv2's layer, with LayerScale and drop path, which EoMT has too."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tokenreduce.forward.run import Run

from ._layers import PretrainedLayer


class LayerScaleLayer(PretrainedLayer):
    norm1: Any
    norm2: Any
    attention: Any
    mlp: Any
    layer_scale1: Any
    layer_scale2: Any
    drop_path: Any

    def attention_line(self, run: Run, x: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        y = self.attention(self.norm1(x), attention_mask=run.attention_bias(x), **kwargs)[0]
        return self.drop_path(self.layer_scale1(y)) + x

    def mlp_line(self, x: Tensor) -> Tensor:
        return self.drop_path(self.layer_scale2(self.mlp(self.norm2(x)))) + x

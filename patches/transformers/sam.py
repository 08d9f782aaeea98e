"""transformers `SamVisionEncoder`: the image encoder of Segment Anything, never its mask decoder."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from transformers.models.sam.modeling_sam import (
    SamVisionAttention,
    SamVisionEncoder,
    SamVisionLayer,
    SamVisionSdpaAttention,
)

from tokenreduce.forward.run import Run

from ..shared.windows import Grid, MapAdapter, MapAttention, MapLayer
from ._layers import HuggingFaceAdapter, PretrainedLayer


class ReducedSamVisionLayer(MapLayer, PretrainedLayer, SamVisionLayer):
    def attention_line(self, run: Run, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x + self.attn(self.layer_norm1(x), run=run)

    def mlp_line(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.layer_norm2(x))


class Restated(MapAttention):
    def tables(self, grid: Grid) -> tuple[Tensor, Tensor]:
        own: Any = self
        height, width = grid
        return own.get_rel_pos(height, height, own.rel_pos_h), own.get_rel_pos(width, width, own.rel_pos_w)


class ReducedSamVisionAttention(Restated, SamVisionAttention):
    def dropped(self) -> float:
        return self.dropout if self.training else 0.0


class ReducedSamVisionSdpaAttention(Restated, SamVisionSdpaAttention):
    """The library drops no attention here, whatever the configuration says."""


class TransformersSam(MapAdapter, HuggingFaceAdapter):
    """The neck is made of convolutions: all tokens are always restored for it."""

    name = "transformers_sam"
    models = (SamVisionEncoder,)
    reduced: ClassVar = {SamVisionLayer: ReducedSamVisionLayer}
    attentions: ClassVar = {
        SamVisionAttention: ReducedSamVisionAttention,
        SamVisionSdpaAttention: ReducedSamVisionSdpaAttention,
    }
    on_tokens = ("patch_embed", "neck")

    def grid(self, model: Any) -> Grid:
        return HuggingFaceAdapter.grid(self, model)


ADAPTER = TransformersSam()

"""torchvision `VisionTransformer`: its blocks around `nn.MultiheadAttention`, which is restated while tokens are
reduced."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from torchvision.models.vision_transformer import EncoderBlock, VisionTransformer

from tokenreduce.budget.geometry import Geometry
from tokenreduce.forward.run import Run

from ..shared.adapter import Reads
from ..shared.layered import LayeredAdapter, ReducedLayer
from ..shared.multihead import ATTENTIONS, refuse_attention
from ..shared.weights import layered_costs, stem_macs


class ReducedEncoderBlock(ReducedLayer, EncoderBlock):
    def attention_line(self, run: Run, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        y, _ = self.self_attention(y, y, y, need_weights=False, attn_mask=run.attention_bias(x))
        return self.dropout(y) + x

    def mlp_line(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.ln_2(x))


class TorchvisionViT(LayeredAdapter):
    """The model itself reads the class token only; what holds it may read the encoder's tokens."""

    name = "torchvision_vit"
    family = "torchvision VisionTransformer"
    reduced: ClassVar = {EncoderBlock: ReducedEncoderBlock}
    attentions: ClassVar = ATTENTIONS

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, VisionTransformer)

    def layers(self, model: Any) -> Sequence[Any]:
        return model.encoder.layers

    def captures(self, model: Any, layer: Any) -> dict[str, tuple[nn.Module, str]]:
        return {}  # its attention shows them

    def restated(self, layer: Any, wanted: frozenset[str] | None = None) -> Sequence[nn.Module]:
        return [layer.self_attention]

    def watched(self, layer: Any) -> Sequence[nn.Module]:
        return [layer.self_attention.out_proj]

    def refuse_attentions(self, attentions: Sequence[nn.Module]) -> list[str]:
        return refuse_attention(attentions)

    def lacks(self, model: Any) -> dict[str, str]:
        return {}

    def geometry(self, model: Any) -> Geometry:
        layers, width = self.layers(model), model.hidden_dim
        heads, side = layers[0].num_heads, model.image_size // model.patch_size
        stem = stem_macs(model.conv_proj, model.image_size, model.image_size)
        costs = layered_costs(model, layers, "self_attention", model.conv_proj, width)
        return Geometry(
            depth=len(layers),
            prefix=1,
            suffix=0,
            class_tokens=1,
            grid=(side, side),
            width=width,
            heads=heads,
            head_dim=width // heads,
            costs=dataclasses.replace(costs, per_token=stem // side**2),
        )

    def reads(self, model: Any, outer: Sequence[nn.Module]) -> Reads:
        return "tokens" if outer or type(model).forward is not VisionTransformer.forward else "protected"


ADAPTER = TorchvisionViT()

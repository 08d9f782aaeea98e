"""torchvision `VisionTransformer`: its blocks around `nn.MultiheadAttention`, which is restated while tokens are
reduced."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from torchvision.models.vision_transformer import EncoderBlock, VisionTransformer

from tokenreduce.budget.geometry import Geometry
from tokenreduce.forward.reduction import Reduction
from tokenreduce.forward.run import Run

from ..shared.adapter import Reads
from ..shared.layered import LayeredAdapter, ReducedLayer, layered_costs, stem_macs
from ..shared.multihead import reduce_attention, refuse_attention, unreduce_attention


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

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, VisionTransformer)

    def layers(self, model: Any) -> Sequence[Any]:
        return model.encoder.layers

    def captures(self, model: Any, layer: Any) -> dict[str, tuple[nn.Module, str]]:
        return {}  # its attention shows them

    def refusals(self, model: Any) -> list[str]:
        reasons = super().refusals(model)
        return reasons or refuse_attention(layer.self_attention for layer in self.layers(model))

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

    def install(self, model: Any, reduction: Reduction) -> None:
        super().install(model, reduction)
        for layer in self.layers(model):
            reduce_attention(layer.self_attention, reduction)

    def remove(self, model: Any) -> None:
        for layer in self.layers(model):
            unreduce_attention(layer.self_attention)
        super().remove(model)


ADAPTER = TorchvisionViT()

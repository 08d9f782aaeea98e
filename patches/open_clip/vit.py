"""OpenCLIP `VisionTransformer`: the image towers of CLIP and CoCa. Text towers are built of the same blocks and are
never matched; towers that OpenCLIP takes from timm are timm's."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from open_clip.transformer import (
    CustomResidualAttentionBlock,
    ResidualAttentionBlock,
    Transformer,
    VisionTransformer,
)
from torch import Tensor, nn

from tokenreduce.budget.geometry import Costs, Geometry
from tokenreduce.forward.marks import mark
from tokenreduce.forward.reduction import Reduction
from tokenreduce.forward.run import Run

from ..shared.adapter import Reads
from ..shared.collecting import stop_telling, tell_layers, told_by_others
from ..shared.layered import LayeredAdapter, ReducedLayer
from ..shared.masks import refuse_masks
from ..shared.multihead import ATTENTIONS, refuse_attention
from ..shared.weights import layered_costs, matrices


class ReducedResidualAttentionBlock(ReducedLayer, ResidualAttentionBlock):
    """A block with an `nn.MultiheadAttention`."""

    def attention_line(
        self,
        run: Run,
        x: Tensor,
        k_x: Tensor | None = None,
        v_x: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        refuse_masks(attn_mask=attn_mask, k_x=k_x, v_x=v_x)
        return x + self.ls_1(self.attention(self.ln_1(x), attn_mask=run.attention_bias(x)))

    def mlp_line(self, x: Tensor) -> Tensor:
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class ReducedCustomBlock(ReducedLayer, CustomResidualAttentionBlock):
    """A block with OpenCLIP's own attention, which adds a mask of any shape to its logits."""

    def attention_line(self, run: Run, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        refuse_masks(attn_mask=attn_mask)
        return x + self.ls_1(self.ln_attn(self.attn(self.ln_1(x), attn_mask=run.attention_bias(x))))

    def mlp_line(self, x: Tensor) -> Tensor:
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class OpenClipViT(LayeredAdapter):
    name = "open_clip_vit"
    family = "OpenCLIP VisionTransformer (image towers)"
    reduced: ClassVar = {
        ResidualAttentionBlock: ReducedResidualAttentionBlock,
        CustomResidualAttentionBlock: ReducedCustomBlock,
    }
    attentions: ClassVar = ATTENTIONS

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, VisionTransformer)

    def layers(self, model: Any) -> Sequence[Any]:
        return model.transformer.resblocks

    def captures(self, model: Any, layer: Any) -> dict[str, tuple[nn.Module, str]]:
        if isinstance(layer, ResidualAttentionBlock):
            return {}  # its attention shows them
        attn = layer.attn
        return {"queries": (attn.ln_q, "queries"), "keys": (attn.ln_k, "keys"), "mean_keys": (attn.ln_k, "mean_keys")}

    def grid_capture(self, model: Any) -> tuple[nn.Module, str]:
        return model.conv1, "grid"

    def refusals(self, model: Any) -> list[str]:
        transformer = model.transformer
        if type(transformer) is not Transformer:
            return [f"its blocks are in a {type(transformer).__name__}, only OpenCLIP's Transformer is known"]
        reasons = super().refusals(model) + told_by_others(transformer)
        attentions = [getattr(layer, "attn", None) for layer in self.layers(model)]
        if any(getattr(attention, "logit_scale", None) is not None for attention in attentions):
            reasons.append("its scaled cosine attention takes no additive logits, in which sizes of tokens go in")
        if not transformer.batch_first:
            reasons.append("its transformer has batch_first=False")
        if transformer.grad_checkpointing:
            reasons.append("gradient checkpointing is on; call model.set_grad_checkpointing(False) first")
        return reasons

    def restated(self, layer: Any, wanted: frozenset[str] | None = None) -> Sequence[nn.Module]:
        return [layer.attn] if isinstance(layer, ResidualAttentionBlock) else []

    def watched(self, layer: Any) -> Sequence[nn.Module]:
        return [layer.attn.out_proj] if isinstance(layer, ResidualAttentionBlock) else []

    def refuse_attentions(self, attentions: Sequence[nn.Module]) -> list[str]:
        return refuse_attention(attentions)

    def lacks(self, model: Any) -> dict[str, str]:
        plain = any(isinstance(layer, ResidualAttentionBlock) for layer in self.layers(model))
        return {} if plain else {"values": "its blocks' own attention shows no values"}

    def geometry(self, model: Any) -> Geometry:
        layers, width = self.layers(model), model.conv1.out_channels
        heads = layers[0].attn.num_heads
        return Geometry(
            depth=len(layers),
            prefix=1,
            suffix=0,
            class_tokens=1,
            grid=tuple(model.grid_size),
            width=width,
            heads=heads,
            head_dim=width // heads,
            costs=model_costs(model, layers, width),
        )

    def reads(self, model: Any, outer: Sequence[nn.Module]) -> Reads:
        pools = model.attn_pool is not None or model.pool_type == "avg"
        shows_tokens = model.output_tokens or model.pool_type == "none"
        own = type(model).forward is not VisionTransformer.forward
        return "tokens" if pools or own or (shows_tokens and outer) else "protected"

    def install(self, model: Any, reduction: Reduction) -> None:
        super().install(model, reduction)
        mark(model.transformer, reduction)
        tell_layers(model.transformer, "resblocks")

    def remove(self, model: Any) -> None:
        stop_telling(model.transformer)
        super().remove(model)


def model_costs(model: Any, layers: Sequence[Any], width: int) -> Costs:
    """Some matrices are parameters of no Linear: `proj`, and the input projection of OpenCLIP's own attention."""
    costs = layered_costs(model, layers, "attn", model.conv1, width)
    extra = [0 if isinstance(layer.attn, nn.MultiheadAttention) else 3 * width**2 for layer in layers]
    proj = 0 if model.proj is None else model.proj.numel()
    per_token, fixed, projected = 0, 0, 1
    if model.attn_pool is not None:
        queries, (each, own) = model.attn_pool.query.shape[0], pooler_macs(model.attn_pool)
        per_token, fixed = each, each + own
        if model.attn_pool_contrastive is not None:
            each, own = pooler_macs(model.attn_pool_contrastive)
            over = model.attn_pool_type == "parallel"
            per_token, fixed = per_token + each * over, fixed + own + each * (1 if over else queries)
        elif model.pool_type == "none":
            projected = queries
    elif model.pool_type == "none":
        per_token = proj
    return dataclasses.replace(
        costs,
        fixed=fixed + projected * proj,
        per_token=matrices(model.conv1) + per_token,
        attention=tuple(a + b for a, b in zip(costs.attention, extra, strict=True)),
    )


def pooler_macs(pooler: Any) -> tuple[int, int]:
    """MACs of attentional pooling: for each token that it reads, and besides."""
    width, queries = pooler.attn.embed_dim, pooler.query.shape[0]
    return 2 * width * (pooler.attn.kdim + queries), 2 * queries * width**2


ADAPTER = OpenClipViT()

"""timm `VisionTransformer`: ViT, DeiT, DeiT-3, DINOv2, registers, CLIP and SigLIP towers.

Attention is never copied: sizes go in through `attn_mask`, keys and queries come out of hooks on `k_norm` and `q_norm`,
and only the two residual lines of each block are restated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from timm.layers import Attention, PatchEmbed
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from torch import Tensor, nn

from tokenreduce.budget.geometry import Costs, Geometry
from tokenreduce.forward.noted import collected
from tokenreduce.forward.reduction import Reduction
from tokenreduce.forward.run import Run

from ..shared.adapter import Reads
from ..shared.classes import refuse_classes
from ..shared.collecting import stop_telling, tell_layers, told_by_others
from ..shared.layered import LayeredAdapter, ReducedLayer
from ..shared.masks import refuse_masks
from ..shared.weights import matrices, matrix_size, stem_macs
from ._blocks import ReducedBlocks, refuse_blocks, refuse_forward
from ._lines import PostNormLines


class MaskableLayer(ReducedLayer):
    """`ReducedLayer` of timm: blocks called one by one by other code than `forward_intermediates` may all have their
    outputs collected."""

    biased_line: Callable[..., Tensor]  # attention, called with the arguments given, and its residual

    def collected(self, reduction: Reduction) -> frozenset[int]:
        return collected(reduction, otherwise=frozenset(range(reduction.geometry.depth)))

    def attention_line(
        self, run: Run, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, **kwargs: Any
    ) -> Tensor:
        refuse_masks(attn_mask=attn_mask, is_causal=is_causal)
        return self.biased_line(x, attn_mask=run.attention_bias(x))


class ReducedBlock(MaskableLayer, Block):
    """`Block`: norms before attention and MLP, LayerScale."""

    def biased_line(self, x: Tensor, **arguments: Any) -> Tensor:
        return x + self.drop_path1(self.ls1(self.attn(self.norm1(x), **arguments)))

    def mlp_line(self, x: Tensor) -> Tensor:
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class ReducedResPostBlock(PostNormLines, MaskableLayer, ResPostBlock):
    """`ResPostBlock`: norms after attention and MLP."""


class TimmViT(LayeredAdapter):
    """Adapter for `timm.models.vision_transformer.VisionTransformer` and its subclasses."""

    reduced: ClassVar = {Block: ReducedBlock, ResPostBlock: ReducedResPostBlock}
    containers: ClassVar = {nn.Sequential: ReducedBlocks}

    name = "timm_vit"
    family = "timm VisionTransformer (ViT, DeiT, DeiT-3, DINOv2, registers, CLIP and SigLIP towers)"

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, VisionTransformer)

    def layers(self, model: Any) -> Sequence[Any]:
        return model.blocks

    def surrounds(self, model: Any) -> Sequence[nn.Module]:
        return [model.blocks]

    def captures(self, model: Any, layer: Any) -> dict[str, tuple[nn.Module, str]]:
        attn = layer.attn
        return {
            "queries": (attn.q_norm, "queries"),
            "keys": (attn.k_norm, "keys"),
            "mean_keys": (attn.k_norm, "mean_keys"),
            "values": (attn.qkv, "fused_values"),
        }

    def grid_capture(self, model: Any) -> tuple[nn.Module, str]:
        return model.patch_embed, "dynamic_grid"

    def refusals(self, model: Any) -> list[str]:
        if reasons := refuse_blocks(model):
            return reasons
        reasons = super().refusals(model)
        reasons += refuse_forward(model, VisionTransformer)
        if not hasattr(model.patch_embed, "grid_size") or not hasattr(model.patch_embed, "dynamic_feat_size"):
            reasons.append(
                f"its patch embedding {type(model.patch_embed).__name__} does not tell the grid of its tokens"
            )
        return reasons + told_by_others(model)

    def refuse_parts(self, model: Any, layers: Sequence[Any]) -> list[str]:
        attentions = [block.attn for block in layers if hasattr(block, "attn")]
        return refuse_classes("attention is", attentions, {Attention: Attention}) or super().refuse_parts(model, layers)

    def lacks(self, model: Any) -> dict[str, str]:
        missing = {}
        if not model.has_class_token:
            missing["class_attention"] = "the model has no class token"
        return missing

    def geometry(self, model: Any) -> Geometry:
        attn = model.blocks[0].attn
        return Geometry(
            depth=len(model.blocks),
            prefix=model.num_prefix_tokens,
            suffix=0,
            class_tokens=int(model.has_class_token) + int(hasattr(model, "dist_token")),
            grid=tuple(model.patch_embed.grid_size),
            width=model.embed_dim,
            heads=attn.num_heads,
            head_dim=attn.head_dim,
            costs=model_costs(model),
        )

    def reads(self, model: Any, outer: Sequence[nn.Module]) -> Reads:
        pools = model.attn_pool is not None or model.global_pool not in ("token", "")
        return "tokens" if pools or outer else "protected"

    def prop_attn(self, model: Any) -> bool:
        # Weights from masked auto-encoding were measured to lose accuracy with the bias (ToMe, table on MAE models).
        config = getattr(model, "pretrained_cfg", None) or {}
        return "mae" not in str(config.get("tag", "")).split("_")

    def install(self, model: Any, reduction: Reduction) -> None:
        super().install(model, reduction)
        tell_layers(model)

    def remove(self, model: Any) -> None:
        stop_telling(model)
        super().remove(model)


def model_costs(model: Any) -> Costs:
    """Costs read off the modules: every matrix of a block works on each token, attention on each pair of tokens."""
    width = [block.attn.num_heads * block.attn.head_dim for block in model.blocks]
    embed = model.patch_embed
    if type(embed) is PatchEmbed:
        embedding = matrices(embed)
    else:  # convolutions on other grids than the tokens': only counting tells
        embedding = stem_macs(embed, *embed.img_size) // max(1, embed.num_patches)
    pool = model.attn_pool
    kv = matrices(pool.kv) if pool is not None and hasattr(pool, "kv") else 0
    heads = [
        m for name, child in model.named_children() if name not in ("patch_embed", "blocks") for m in child.modules()
    ]
    return Costs(
        fixed=sum(matrix_size(m) for m in heads) - kv,
        per_token=embedding + kv,
        attention=tuple(matrices(block.attn) for block in model.blocks),
        pairs=tuple(2 * w for w in width),
        mlp=tuple(matrices(block.mlp) for block in model.blocks),
    )


ADAPTER = TimmViT()

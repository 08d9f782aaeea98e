from functools import partial
from typing import Any

import pytest
import timm
import torch
from backbones import Backbone, Inputs
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from timms import intermediates, small_vit, timm_row
from torch import Tensor, nn

from tokenreduce.models.segmenter import LinearSegmenter

SILENCE = ("attn.proj", "mlp.fc2")
# Models that timm has weights for, made small: their heads, registers, norms and layer scales.
NAMED = {
    "vit_tiny_patch16_224": 1,
    "deit_small_distilled_patch16_224": 2,
    "deit3_small_patch16_224": 1,
    "vit_small_patch14_dinov2": 1,
    "vit_small_patch14_reg4_dinov2": 5,
    "vit_base_patch16_clip_224": 1,
}
SIGLIP = "vit_base_patch16_siglip_224"  # the same, without a class token


def gated_vit(**arguments: Any) -> nn.Module:
    pytest.importorskip("timm", "1.0.28")  # attention without gates before
    model = small_vit(**arguments)
    for block in model.blocks:
        block.attn.gate = nn.Linear(32, 32)
    return model


def segmenter(**arguments: Any) -> nn.Module:
    return LinearSegmenter(small_vit(num_classes=0), 5, auxiliary=(0, 1, 2, 3))


def equal_positions(model: nn.Module) -> None:
    vit = getattr(model, "backbone", model)
    first = 0 if vit.no_embed_class else vit.num_prefix_tokens
    if vit.pos_embed is not None:
        with torch.no_grad():
            vit.pos_embed[:, first:] = vit.pos_embed[:, first : first + 1].clone()


def other_calls(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    features = model.forward_features(inputs["x"])
    final, maps = model.forward_intermediates(inputs["x"], norm=True)
    return [features, model.forward_head(features), final, *maps, *model.get_intermediate_layers(inputs["x"], 2)]


def vit(name: str, model: Any = small_vit, arguments: dict[str, Any] | None = None, **fields: Any) -> Backbone:
    parts = {"silence": SILENCE, "equal_positions": equal_positions, "also": other_calls}
    return timm_row(name, model, {"mlp_ratio": 4} | (arguments or {}), **parts | fields)


def make_rows() -> list[Backbone]:
    return [
        vit("timm_vit", VisionTransformer, {"mlp_ratio": 2}),
        vit("timm_vit_qk_norm", arguments={"qk_norm": True, "init_values": 0.1}),
        *(vit(name, partial(timm.create_model, name), prefix=prefix) for name, prefix in NAMED.items()),
        vit(SIGLIP, partial(timm.create_model, SIGLIP), prefix=0, reads="tokens"),
        vit("timm_vit_average", arguments={"global_pool": "avg", "class_token": False}, prefix=0, reads="tokens"),
        vit("timm_vit_average_registers", arguments={"global_pool": "avg", "reg_tokens": 2}, prefix=3, reads="tokens"),
        vit("timm_vit_maximum", arguments={"global_pool": "avgmax"}, reads="tokens"),
        vit("timm_vit_gated", gated_vit),
        vit("timm_vit_short", arguments={"img_size": 16, "depth": 2}, grid=(4, 4), last="blocks.1.mlp.fc1"),
        vit("timm_vit_post_norm", arguments={"block_fn": ResPostBlock}, silence=("norm1", "norm2")),
        vit("timm_vit_not_square", arguments={"img_size": (24, 40)}, grid=(6, 10)),
        vit("timm_vit_dynamic_size", arguments={"dynamic_img_size": True}, grid=(8, 6)),
        vit(
            "timm_vit_segmenter",
            segmenter,
            last="backbone.blocks.3.mlp.fc1",
            argument="images",
            collect=lambda model, inputs: intermediates(model.backbone, {"x": inputs["images"]}),
            also=None,
            auxiliary_heads=True,
            reads="tokens",
        ),
    ]

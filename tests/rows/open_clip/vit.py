from functools import partial
from typing import Any

import torch
from backbones import PATCH, Backbone, Inputs, call
from hugging import equal_rows
from open_clip import CLIP
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

SMALL: dict[str, Any] = {
    "image_size": 32,
    "patch_size": PATCH,
    "width": 32,
    "layers": 4,
    "heads": 2,
    "mlp_ratio": 2.0,
    "ls_init_value": 0.5,
    "output_dim": 16,
}
OWN = dict.fromkeys(("qk_norm", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"), True)
POOLER = {"attn_pooler_queries": 5, "attn_pooler_heads": 2}
VISION = {k: v for k, v in SMALL.items() if k not in ("heads", "output_dim")} | {"head_width": 16}
TEXT = {"context_length": 8, "vocab_size": 32, "width": 32, "heads": 2, "layers": 4}


def tower_maps(model: Any, inputs: Inputs) -> list[Tensor]:
    return model.forward_intermediates(**inputs, output_fmt="NLC")["image_intermediates"]


def clip_maps(model: Any, inputs: Inputs) -> list[Tensor]:
    maps = model.visual.forward_intermediates(inputs["image"], indices=3, output_fmt="NLC")
    return maps["image_intermediates"]


def with_text(backbone: Backbone, images: Tensor) -> Inputs:
    text = torch.arange(8).repeat(images.shape[0], 1)
    return {"image": images, "text": text}


def features(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    return call(model, inputs)[:2]  # the third is a number


def make_rows() -> list[Backbone]:
    def tower(name: str, options: dict[str, Any], **fields: Any) -> Backbone:
        return Backbone(
            name,
            partial(VisionTransformer, **SMALL, **options),
            "transformer.resblocks.3.mlp.c_fc",
            ("ls_1", "ls_2"),
            partial(equal_rows, "positional_embedding", 1),
            argument="x",
            collect=tower_maps,
            **fields,
        )

    return [
        tower("open_clip_vit", {"output_tokens": True}),
        tower(
            "open_clip_custom",
            {"pool_type": "avg", "final_ln_after_pool": True, **OWN},
            lacks=frozenset({"values"}),
            reads="tokens",
        ),
        tower("open_clip_coca", {"attentional_pool": True, "output_tokens": True, **POOLER}, reads="tokens"),
        Backbone(
            "open_clip_clip",
            partial(CLIP, 16, VISION, TEXT),
            "visual.transformer.resblocks.3.mlp.c_fc",
            ("ls_1", "ls_2"),
            partial(equal_rows, "visual.positional_embedding", 1),
            argument="image",
            collect=clip_maps,
            outputs=features,
            make_inputs=with_text,
        ),
    ]

from functools import partial
from typing import Any

import pytest
import torch
from backbones import Backbone
from hugging import equal_rows
from timm.models._features import FeatureGetterNet
from timm.models.eva import Eva
from timms import SMALL, timm_row
from torch import nn

SILENCE = ("attn.proj", "mlp.fc2")


def new_eva(**arguments: Any) -> nn.Module:
    """An `Eva`; that of an older timm is refused."""
    pytest.importorskip("timm", "1.0.28")
    return Eva(**arguments)


def equal_places(prefix: int, model: nn.Module) -> None:
    """Neither position embeddings nor rotary embedding tell image tokens apart."""
    eva = getattr(model, "model", model)
    if eva.pos_embed is not None:
        equal_rows("pos_embed", prefix, eva)
    with torch.no_grad():
        rope = eva.rope
        for table in (
            getattr(rope, name, None) for name in ("pos_embed", "pos_embed_cached", "freqs", "bands", "inv_freq")
        ):
            if table is not None:
                table.copy_(table[:1].clone() if table.shape[0] > 2 and table.ndim == 2 else torch.zeros_like(table))


def eva(name: str, prefix: int = 1, **arguments: Any) -> Backbone:
    own = ("last", "tokens_stay_reduced", "silence", "lacks", "reads")
    fields = {"silence": SILENCE} | {key: arguments.pop(key) for key in own if key in arguments}
    places = prefix if not arguments.get("no_embed_class") else 0
    return timm_row(
        name,
        new_eva,
        arguments,
        prefix=prefix,
        equal_positions=partial(equal_places, places),
        rotary=arguments.get("use_rot_pos_emb", False),
        **fields,
    )


def feature_maps() -> nn.Module:
    return FeatureGetterNet(new_eva(**SMALL, **EVA02), out_indices=(1, 3), prune=False)


ROPE = {"use_rot_pos_emb": True}
EVA02 = ROPE | {"swiglu_mlp": True, "scale_mlp": True, "scale_attn_inner": True, "qkv_fused": False}
DINOV3 = ROPE | {
    "rope_type": "dinov3",
    "use_abs_pos_emb": False,
    "qkv_bias": False,
    "init_values": 0.5,
    "num_reg_tokens": 3,
    "rope_rotate_half": True,
}


def make_rows() -> list[Backbone]:
    return [
        eva("timm_eva", reads="tokens"),
        eva("timm_eva02", last="blocks.3.mlp.fc1_g", **EVA02, reads="tokens"),
        eva("timm_dinov3", 4, global_pool="token", **DINOV3),
        eva("timm_dinov3_tokens", 4, global_pool="", num_classes=0, tokens_stay_reduced=True, **DINOV3),
        eva(
            "timm_rope_mixed",
            0,
            rope_type="mixed",
            class_token=False,
            global_pool="map",
            use_abs_pos_emb=False,
            attn_type="rope",
            qk_norm=True,
            **ROPE,
            reads="tokens",
        ),
        eva(
            "timm_rope_grouped",
            3,
            rope_type="mrope",
            num_reg_tokens=2,
            no_embed_class=True,
            attn_type="rope",
            num_heads=4,
            num_kv_heads=2,
            qkv_fused=False,
            attn_only_layer_scale=True,
            init_values=0.5,
            dynamic_img_size=True,
            rope_mrope_section=(1, 1, 1),
            lacks=frozenset({"values"}),
            **ROPE,
            reads="tokens",
        ),
        eva("timm_eva_post_norm", silence=("norm1", "norm2"), use_post_norm=True, global_pool="token", **ROPE),
        Backbone(
            "timm_eva02_features",
            feature_maps,
            "model.blocks.3.mlp.fc1_g",
            SILENCE,
            argument="x",
            rotary=True,
            equal_positions=partial(equal_places, 1),
            reads="tokens",
        ),
    ]

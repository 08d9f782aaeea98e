from functools import partial

import torch
from backbones import Backbone
from hugging import LAYERSCALE, SMALL, hf
from torch import nn
from transformers import DINOv3ViTConfig


def no_rotation(model: nn.Module) -> None:
    with torch.no_grad():
        model.rope_embeddings.inv_freq.zero_()


def make_rows() -> list[Backbone]:
    make = partial(DINOv3ViTConfig, **SMALL, **LAYERSCALE, num_register_tokens=3)
    parts = {
        "silence": ("layer_scale1", "layer_scale2"),
        "prefix": 4,
        "rotary": True,
        "last": "model.layer.3.mlp.up_proj",
    }
    stages = make(out_features=["stage2", "stage4"])
    return [
        hf("hf_dinov3", "DINOv3ViTModel", make(), **parts, equal_positions=no_rotation, tokens_stay_reduced=True),
        hf(
            "hf_dinov3_backbone",
            "DINOv3ViTBackbone",
            stages,
            **parts,
            equal_positions=no_rotation,
        ),
    ]

from functools import partial

import torch
from backbones import Backbone, Inputs
from hugging import SMALL, hf
from torch import Tensor, nn
from transformers import VitDetConfig, VitMatteConfig


def no_positions(model: nn.Module) -> None:
    """Neither position embeddings nor relative positions tell tokens apart."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("position_embeddings", "rel_pos_h", "rel_pos_w")):
                parameter.zero_()


def maps(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    states = model(**inputs, output_hidden_states=True).hidden_states[1:]
    return [state.flatten(2).transpose(1, 2) for state in states]


def with_trimap(backbone: Backbone, images: Tensor) -> Inputs:
    """VitMatte needs patches of 16 pixels, and a fourth channel."""
    images = images.repeat_interleave(4, 2).repeat_interleave(4, 3)
    return {"pixel_values": torch.cat([images, images[:, :1]], 1)}


def vitdet(name: str, model: str, config: object, **fields) -> Backbone:
    parts = {
        "last": "encoder.layer.3.mlp.fc1",
        "silence": ("attention.proj", "mlp.fc2", "residual.norm3"),
        "equal_positions": no_positions,
        "prefix": 0,
        "collect": maps,
        "biased": True,
        "map_attention": "encoder.layer.1.attention",
    }
    return hf(name, model, config, **parts | fields)


def make_rows() -> list[Backbone]:
    small = {key: value for key, value in SMALL.items() if key != "intermediate_size"}
    make = partial(VitDetConfig, **small, pretrain_image_size=32, use_relative_position_embeddings=True, window_size=4)
    alternating = make(window_block_indices=[0, 2], mlp_ratio=8)
    convolved = make(window_block_indices=[0], residual_block_indices=[0, 1], mlp_ratio=8, out_features=["stage4"])
    plain = VitDetConfig(**small, pretrain_image_size=32, mlp_ratio=2)
    stages = make(window_block_indices=[0], mlp_ratio=2, out_features=["stage2", "stage4"])
    large = small | {"image_size": 128, "patch_size": 16}
    matting = VitMatteConfig(
        backbone_config=VitDetConfig(
            **large, pretrain_image_size=128, mlp_ratio=4, num_channels=4, out_features=["stage4"]
        ),
        hidden_size=32,
        convstream_hidden_sizes=[16, 16, 16],
        fusion_hidden_sizes=[32, 32, 32, 32],
    )
    return [
        vitdet("hf_vitdet", "VitDetModel", alternating, shares=(0.95, 0.85), in_a_row=False, reads="all"),
        vitdet("hf_vitdet_plain", "VitDetModel", plain, reads="all"),
        vitdet("hf_vitdet_backbone", "VitDetBackbone", stages, reads="all"),
        vitdet(
            "hf_vitdet_convolved",
            "VitDetBackbone",
            convolved,
            shares=(0.95, 0.85),
            equal_positions=None,
            map_attention="encoder.layer.2.attention",
            reads="all",
        ),
        vitdet(
            "hf_vitmatte",
            "VitMatteForImageMatting",
            matting,
            last="backbone.encoder.layer.3.mlp.fc1",
            map_attention="backbone.encoder.layer.1.attention",
            make_inputs=with_trimap,
            reads="all",
        ),
    ]

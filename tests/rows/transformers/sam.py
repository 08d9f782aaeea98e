from functools import partial

import torch
from backbones import Backbone, Inputs
from hugging import SMALL, hf
from torch import Tensor, nn
from transformers import SamConfig, SamMaskDecoderConfig, SamPromptEncoderConfig, SamVisionConfig


def no_positions(model: nn.Module) -> None:
    """Neither position embeddings nor relative positions tell tokens apart."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("vision_encoder.pos_embed", "rel_pos_h", "rel_pos_w")):
                parameter.zero_()


def maps(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    states = model(**inputs, output_hidden_states=True).hidden_states[1:]
    return [state.flatten(1, 2) for state in states]


def with_points(backbone: Backbone, images: Tensor) -> Inputs:
    return {"pixel_values": images, "input_points": images.new_tensor([[[9.0, 20.0]]]).expand(len(images), 1, 1, 2)}


def sam(name: str, model: str, config: object, **fields) -> Backbone:
    parts = {
        "last": "vision_encoder.layers.3.mlp.lin1",
        "silence": ("attn.proj", "mlp.lin2"),
        "equal_positions": no_positions,
        "prefix": 0,
        "biased": True,
        "map_attention": "vision_encoder.layers.1.attn",
        "one_size": True,
    }
    return hf(name, model, config, **parts | fields)


def make_rows() -> list[Backbone]:
    small = {key: value for key, value in SMALL.items() if key != "intermediate_size"}
    make = partial(SamVisionConfig, **small, window_size=4, output_channels=32, num_pos_feats=16)
    alternating = make(global_attn_indexes=[1, 3], mlp_ratio=8.0)
    config = SamConfig(
        vision_config=make(global_attn_indexes=[1, 2, 3], mlp_ratio=6.0),
        prompt_encoder_config=SamPromptEncoderConfig(
            hidden_size=32, image_size=32, patch_size=4, mask_input_channels=4
        ),
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=32, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=32
        ),
    )
    return [
        sam(
            "hf_sam_vision",
            "SamVisionModel",
            alternating,
            collect=maps,
            shares=(0.95, 0.85),
            in_a_row=False,
            reads="all",
        ),
        sam("hf_sam", "SamModel", config, collect=None, make_inputs=with_points, reads="all"),
    ]

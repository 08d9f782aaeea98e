from functools import partial

import torch
from backbones import PATCH, Backbone, Inputs
from hugging import SMALL, hf
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ViTMAEConfig


def in_order(backbone: Backbone, images: Tensor) -> Inputs:
    """All patches in raster order, not shuffled."""
    noise = torch.arange(backbone.count).float().expand(images.shape[0], -1).contiguous()
    return {"pixel_values": images, "noise": noise}


def in_the_corner(backbone: Backbone, images: Tensor) -> Inputs:
    """An image twice as high and wide, of which all but the given part is masked."""
    height, width = backbone.grid
    wide = F.pad(images, (0, width * PATCH, 0, height * PATCH), value=1.0)
    masked = F.pad(torch.zeros(height, width), (0, width, 0, height), value=1.0).flatten()
    noise = masked * masked.numel() + torch.arange(masked.numel())
    return {"pixel_values": wide, "noise": noise.expand(images.shape[0], -1).contiguous()}


def tokens(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    return [model(**inputs).last_hidden_state]


def pixels(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    return [model(**inputs).logits]


def make_rows() -> list[Backbone]:
    make = partial(
        ViTMAEConfig,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=64,
    )
    parts = {"silence": ("attention.o_proj", "mlp.fc2"), "lacks": frozenset({"grid"})}
    return [
        hf(
            "hf_vit_mae_model",
            "ViTMAEModel",
            make(**SMALL, mask_ratio=0.0),
            last="layers.3.mlp.fc1",
            positions="embeddings.position_embeddings",
            tokens_stay_reduced=True,
            make_inputs=in_order,
            outputs=tokens,
            **parts,
        ),
        hf(
            "hf_vit_mae",
            "ViTMAEForPreTraining",
            make(**SMALL | {"image_size": 64}, mask_ratio=0.75),
            last="vit.layers.3.mlp.fc1",
            positions="vit.embeddings.position_embeddings",
            make_inputs=in_the_corner,
            outputs=pixels,
            **parts,
            reads="all",
        ),
    ]

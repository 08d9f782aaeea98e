from functools import partial
from typing import Any

import torch
from backbones import PATCH, Backbone, Inputs, call
from hugging import SMALL, hf
from torch import Tensor, nn
from transformers import Siglip2Config, Siglip2TextConfig, Siglip2VisionConfig

MASK = "pixel_attention_mask"


def patches(padded: bool, backbone: Backbone, images: Tensor) -> Inputs:
    """Patches in raster order; if `padded`, of images with 5, 6, 7, 8, 5, ... rows of them, the others are padding."""
    rows, columns = backbone.grid
    cut = images.unflatten(3, (columns, PATCH)).unflatten(2, (rows, PATCH)).permute(0, 2, 4, 3, 5, 1)
    heights = torch.tensor([5 + i % 4 if padded else rows for i in range(images.shape[0])])
    return {
        "pixel_values": cut.flatten(1, 2).flatten(2),
        MASK: (torch.arange(rows * columns) < heights[:, None] * columns).long(),
        "spatial_shapes": torch.stack([heights, torch.full_like(heights, columns)], 1),
    }


def without_padding(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    mask = inputs[MASK][..., None]
    return [out * mask if out.ndim == 3 else out for out in call(model, inputs)]


def with_text(backbone: Backbone, images: Tensor) -> Inputs:
    text = torch.arange(8).expand(images.shape[0], -1).contiguous()
    return patches(True, backbone, images) | {"input_ids": text}


def images_only(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """What does not compare the images of a batch with its texts."""
    out = model(**inputs)
    return [out.image_embeds, out.text_embeds]


def make_rows() -> list[Backbone]:
    sizes = {name: value for name, value in SMALL.items() if name != "image_size"}
    vision = Siglip2VisionConfig(**sizes, num_patches=64)
    text = Siglip2TextConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=20,
        max_position_embeddings=8,
    )
    both = Siglip2Config(vision_config=vision, text_config=text, num_labels=7)
    parts: dict[str, Any] = {
        "silence": ("self_attn.out_proj", "mlp.fc2"),
        "prefix": 0,
        "lacks": frozenset({"grid"}),
        "traceable": False,
    }
    inside = {"last": "encoder.layers.3.mlp.fc1", "positions": "embeddings.position_embedding.weight"}
    held = {name: f"vision_model.{path}" for name, path in inside.items()}
    padded = {"make_inputs": partial(patches, True), "outputs": without_padding, "collect": None, "padded": MASK}
    return [
        hf(
            "hf_siglip2_vision",
            "Siglip2VisionModel",
            vision,
            **inside,
            **parts,
            make_inputs=partial(patches, False),
            reads="all",
        ),
        hf("hf_siglip2_padded", "Siglip2VisionModel", vision, **inside, **parts, **padded, reads="all"),
        hf("hf_siglip2_classifier", "Siglip2ForImageClassification", both, **held, **parts, **padded, reads="all"),
        hf(
            "hf_siglip2",
            "Siglip2Model",
            both,
            **held,
            **parts,
            make_inputs=with_text,
            outputs=images_only,
            collect=None,
            padded=MASK,
            reads="all",
        ),
    ]

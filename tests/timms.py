"""What the rows of timm's models share."""

from __future__ import annotations

from functools import partial
from typing import Any

from backbones import Backbone, Inputs
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

SMALL: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 4,
    "embed_dim": 32,
    "depth": 4,
    "num_heads": 2,
    "mlp_ratio": 2,
    "num_classes": 7,
}


def small_vit(**arguments: Any) -> nn.Module:
    """A plain vision transformer with random weights."""
    return VisionTransformer(**SMALL | {"mlp_ratio": 4} | arguments)


def intermediates(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The image tokens of every layer's output."""
    return model.forward_intermediates(inputs["x"], output_fmt="NLC", intermediates_only=True)


def timm_row(
    name: str, model: Any, arguments: dict[str, Any], last: str = "blocks.3.mlp.fc1", **fields: Any
) -> Backbone:
    return Backbone(
        name, partial(model, **SMALL | arguments), last, **{"argument": "x", "collect": intermediates} | fields
    )

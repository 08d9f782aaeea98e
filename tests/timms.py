"""What the rows of timm's models share, apart from plain vision transformers, which `families.py` has."""

from __future__ import annotations

from functools import partial
from typing import Any

from backbones import Backbone, Inputs
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


def intermediates(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The image tokens of every layer's output."""
    return model.forward_intermediates(inputs["x"], output_fmt="NLC", intermediates_only=True)


def timm_row(
    name: str, model: Any, arguments: dict[str, Any], last: str = "blocks.3.mlp.fc1", **fields: Any
) -> Backbone:
    return Backbone(
        name, partial(model, **SMALL | arguments), last, **{"argument": "x", "collect": intermediates} | fields
    )

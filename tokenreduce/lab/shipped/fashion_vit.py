"""The vision transformer that ships with the library: 196 + 1 tokens, 12 blocks, trained on Fashion-MNIST."""

from __future__ import annotations

from typing import Any

from torch import nn

from tokenreduce.lab.shipped.weights import ASSETS, with_weights

WEIGHTS = ASSETS / "fashion_vit.safetensors"
WIDTH, HEADS, DEPTH, PATCH = 64, 2, 12, 2


def build(patch_size: int = PATCH, width: int = WIDTH, heads: int = HEADS, depth: int = DEPTH) -> nn.Module:
    """A plain timm `VisionTransformer` for 28 x 28 grey images, random weights."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=28, patch_size=patch_size, in_chans=1, num_classes=10, embed_dim=width, num_heads=heads, depth=depth
    )


def fashion_vit(pretrained: bool = True) -> nn.Module:
    """The shipped model in eval mode, input `(B, 1, 28, 28)`, output `(B, 10)`; its model card lies beside the
    weights."""
    model: Any = build()
    model.command_line = "fashion_vit", (1, 28, 28)
    return with_weights(model, WEIGHTS) if pretrained else model.eval()

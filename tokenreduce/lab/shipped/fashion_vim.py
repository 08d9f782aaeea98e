"""The vision state-space model that ships with the library: 196 + 1 tokens, 12 blocks, trained on Fashion-MNIST."""

from __future__ import annotations

from typing import Any

from torch import nn

from tokenreduce.lab.shipped.weights import ASSETS, with_weights

WEIGHTS = ASSETS / "fashion_vim.safetensors"
WIDTH, STATES, DEPTH, PATCH = 64, 16, 12, 2


def build(patch_size: int = PATCH, width: int = WIDTH, states: int = STATES, depth: int = DEPTH) -> nn.Module:
    """A `VisionMamba` with the class token in the middle, for 28 x 28 grey images, random weights."""
    from tokenreduce.models.vim import VisionMamba

    return VisionMamba(28, patch_size, in_chans=1, num_classes=10, embed_dim=width, depth=depth, states=states)


def fashion_vim(pretrained: bool = True) -> nn.Module:
    """The shipped model in eval mode, input `(B, 1, 28, 28)`, output `(B, 10)`; its model card lies beside the
    weights."""
    model: Any = build()
    model.command_line = "fashion_vim", (1, 28, 28)
    return with_weights(model, WEIGHTS) if pretrained else model.eval()

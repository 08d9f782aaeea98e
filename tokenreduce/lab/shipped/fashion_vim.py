"""The vision state-space model that ships with the library: 196 + 1 tokens, 12 blocks, trained on Fashion-MNIST."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

WEIGHTS = Path(__file__).parent / "assets" / "fashion_vim.safetensors"
WIDTH, STATES, DEPTH, PATCH = 64, 16, 12, 2


def build(patch_size: int = PATCH, width: int = WIDTH, states: int = STATES, depth: int = DEPTH) -> nn.Module:
    """A `VisionMamba` with the class token in the middle, for 28 x 28 grey images, random weights."""
    from tokenreduce.models.vim import VisionMamba

    return VisionMamba(28, patch_size, in_chans=1, num_classes=10, embed_dim=width, depth=depth, states=states)


def fashion_vim(pretrained: bool = True) -> nn.Module:
    """The shipped model in eval mode, input `(B, 1, 28, 28)`, output `(B, 10)`; its model card lies beside the
    weights."""
    model = build()
    if pretrained:
        from safetensors.torch import load_file

        weights = load_file(str(WEIGHTS))
        model.load_state_dict({name: value.to(torch.float32) for name, value in weights.items()})
    return model.eval()

"""Segmentation with a plain vision transformer: its last map, a linear or a mask head, bilinear upsampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LinearSegmenter(nn.Module):
    """The linear head of Segmenter (Strudel et al., ICCV 2021, arXiv 2105.05633) on a timm vision transformer.

    Departure: each token predicts `detail` x `detail` places, so that edges are finer than the patches.

    Args:
        backbone: a timm model with `forward_intermediates`.
        classes: number of classes K.
        detail: predictions along each side of a token.
        auxiliary: layers whose tokens have a head of their own (deep supervision, early exit).
    """

    def __init__(self, backbone: Any, classes: int, detail: int = 2, auxiliary: Sequence[int] = ()) -> None:
        super().__init__()
        self.backbone, self.classes, self.detail = backbone, classes, detail
        self.head = nn.Linear(backbone.num_features, classes * detail**2)
        self.auxiliary_heads = nn.ModuleDict(
            {str(layer): nn.Linear(backbone.num_features, classes * detail**2) for layer in auxiliary}
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, K, H, W)` from images `(B, C, H, W)`."""
        [tokens] = self.backbone.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
        return self.upsample(self.predict(tokens, self.head), images)

    @property
    def auxiliary_layers(self) -> tuple[int, ...]:
        """The layers that have an auxiliary head after them."""
        return tuple(int(layer) for layer in self.auxiliary_heads)

    def auxiliary_logits(self, layer: int, tokens: Tensor) -> Tensor:
        """Logits `(B, N, P, K)` of `tokens (B, N, D)` after `layer`, of the P = detail x detail places of each."""
        out = self.auxiliary_heads[str(layer)](self.backbone.norm(tokens))
        return out.unflatten(2, (self.classes, -1)).transpose(2, 3)

    def predict(self, tokens: Tensor, head: nn.Module) -> Tensor:
        """Logits `(B, K, detail * h, detail * w)` of a map `(B, D, h, w)`."""
        return F.pixel_shuffle(head(tokens.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), self.detail)

    def upsample(self, logits: Tensor, images: Tensor) -> Tensor:
        """`logits` in the size of `images`."""
        return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)


class MaskSegmenter(nn.Module):
    """The mask transformer of Segmenter (Strudel et al., ICCV 2021, arXiv 2105.05633) on a timm vision transformer.

    A vector for each class joins the tokens, a few layers of attention mix them, and the logit of a class at a token
    is the cosine of the two. Departures: a layer norm over the classes makes logits of the cosines, where the paper
    applies it after a softmax; class vectors have length 1 as those of tokens have.

    Args:
        backbone: a timm model with `forward_intermediates`.
        classes: number of classes K.
        layers: layers of attention, of the width and with the heads of the backbone.
    """

    def __init__(self, backbone: Any, classes: int, layers: int = 2) -> None:
        from timm.models.vision_transformer import Block

        super().__init__()
        width, heads = backbone.num_features, backbone.blocks[0].attn.num_heads
        self.backbone, self.classes = backbone, classes
        self.class_vectors = nn.Parameter(nn.init.trunc_normal_(torch.empty(classes, width), std=0.02))
        self.enter = nn.Linear(width, width)
        self.layers = nn.Sequential(*[Block(width, heads, qkv_bias=True) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.scale = nn.LayerNorm(classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, K, H, W)` from images `(B, C, H, W)`."""
        [tokens] = self.backbone.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
        logits = self.decode(tokens.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, tokens.shape[-2:])
        return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)

    def decode(self, tokens: Tensor) -> Tensor:
        """Logits `(B, N, K)` of any tokens `(B, N, D)`, reduced ones too: they need no order and no grid."""
        vectors = self.class_vectors.expand(tokens.shape[0], -1, -1)
        mixed = self.norm(self.layers(torch.cat([self.enter(tokens), vectors], 1)))
        tokens, vectors = F.normalize(mixed, dim=2).split([tokens.shape[1], self.classes], 1)
        return self.scale(tokens @ vectors.transpose(1, 2))

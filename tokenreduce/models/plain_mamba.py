"""PlainMamba, on any device, for its released weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenreduce.maps.grid_walks import Grid, GridWalks, whole_grid
from tokenreduce.models.evaluated import evaluated
from tokenreduce.models.plain_mamba_mixer import PlainMambaMixer, convolved
from tokenreduce.models.positions import resized_positions

STEM = 64  # channels of the convolutions before the patches


class LayerNorm(nn.LayerNorm):
    """Layer norm of a stream that may be wider than its weights, in their type."""

    def forward(self, x: Tensor) -> Tensor:
        """`x (..., C)`, normed."""
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps).to(self.weight.dtype)


class PlainMambaLayer(nn.Module):
    """`x + mamba(norm(x))`, and with `depthwise` a 3 x 3 convolution of that on the grid, without a residual."""

    def __init__(self, width: int, states: int, side: int, expand: int, depthwise: bool = False) -> None:
        super().__init__()
        self.norm = LayerNorm(width)
        self.mamba = PlainMambaMixer(width, states, side, expand)
        if depthwise:
            convolution = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
            self.dw = nn.Sequential(convolution, nn.BatchNorm2d(width), nn.GELU())

    @property
    def mixer(self) -> PlainMambaMixer:
        """The mixer, whose name in released weights is `mamba`."""
        return self.mamba

    def forward(self, x: Tensor, walks: GridWalks) -> Tensor:
        """`(B, L, width)` from the stream `x (B, L, width)`, all or some tokens of a grid."""
        x = x + self.mamba(self.norm(x), walks)
        if not hasattr(self, "dw"):
            return x
        return convolved(x.to(self.norm.weight.dtype), self.dw, walks).to(x.dtype)


class ConvPatchEmbed(nn.Module):
    """Patches of 16 x 16 pixels by convolutions: one that halves the image, `convs` of 3 x 3, one of 8 x 8 patches."""

    def __init__(self, channels: int, width: int, patch_size: int, convs: int) -> None:
        super().__init__()
        self.cell = patch_size // 2  # the stem halves the image
        self.stem = nn.Sequential(nn.Conv2d(channels, STEM, 7, 2, 3, bias=False), nn.BatchNorm2d(STEM), nn.ReLU())
        parts = [(nn.Conv2d(STEM, STEM, 3, 1, 1, bias=False), nn.BatchNorm2d(STEM), nn.ReLU()) for _ in range(convs)]
        self.convs = nn.Sequential(*(part for three in parts for part in three))
        self.projection = nn.Conv2d(STEM, width, self.cell, self.cell)

    def forward(self, images: Tensor) -> Tensor:
        """`(B, width, H, W)`; what fills no patch at the right and at the bottom is padded with zeros."""
        x = self.convs(self.stem(images))
        bottom, right = (-x.shape[2] % self.cell, -x.shape[3] % self.cell)
        return self.projection(F.pad(x, (0, right, 0, bottom)) if bottom or right else x)


class LinearHead(nn.Module):
    """The linear layer of the head, under the name of released weights."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Logits of `x (..., width)`."""
        return self.fc(x)


class PlainMamba(nn.Module):
    """A vision state-space model of one resolution that looks at patches along snakes in four directions.

    Yang et al., BMVC 2024, arXiv 2403.17695. There is no class token: the head reads the mean of all tokens. Images may
    have any size, to which position embeddings are resized. Keys of the state dictionary are those of the released
    weights without `backbone.`; see `load_checkpoint`. It was never run on released weights, which could not be had:
    names, shapes and sums are those of the released code.

    Departure: all layers share one fp32 stream.

    Args:
        img_size: side of the images in pixels that position embeddings are for, or height and width.
        patch_size: side of a patch in pixels.
        in_chans: channels of the images.
        num_classes: classes of the head; 0: none.
        embed_dim: channels of a token.
        depth: number of layers.
        states: numbers that a scan keeps for each inner channel.
        side: of the square that the mixers' convolutions read.
        expand: inner channels for each channel.
        stem_convs: convolutions of the stem at half resolution.
        depthwise: the layers that end with a convolution on the grid.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 192,
        depth: int = 24,
        states: int = 16,
        side: int = 7,
        expand: int = 2,
        stem_convs: int = 1,
        depthwise: Sequence[int] = (),
    ) -> None:
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.grid = -(-height // patch_size), -(-width // patch_size)
        self.num_features, self.num_classes = embed_dim, num_classes
        self.pretrained_cfg = evaluated(in_chans, (height, width))
        self.patch_embed = ConvPatchEmbed(in_chans, embed_dim, patch_size, stem_convs)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1], embed_dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.layers = nn.ModuleList(
            PlainMambaLayer(embed_dim, states, side, expand, layer in depthwise) for layer in range(depth)
        )
        self.ln1 = LayerNorm(embed_dim, eps=1e-6)
        self.head = LinearHead(embed_dim, num_classes)

    def embed(self, images: Tensor) -> tuple[Tensor, Grid]:
        """Patches with positions, `(B, H W, C)` in fp32, and their grid (H, W)."""
        x = self.patch_embed(images)
        grid = int(x.shape[2]), int(x.shape[3])
        x = x.flatten(2).transpose(1, 2) + resized_positions(self.pos_embed, self.grid, grid)
        return x if x.dtype == torch.float64 else x.float(), grid

    def forward_features(self, images: Tensor) -> Tensor:
        """Normed tokens `(B, H W, C)` in raster order, from images `(B, 3, height, width)`."""
        x, grid = self.embed(images)
        walks = whole_grid(grid, x.shape[0], x.device)
        for layer in self.layers:
            x = layer(x, walks)
        return self.ln1(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of the mean of tokens `(B, N, C)`, or that mean."""
        x = x.mean(1)
        return x if pre_logits else self.head(x)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, num_classes)`."""
        return self.forward_head(self.forward_features(images))

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: Any = None) -> None:
        """A new head of random weights; 0: none."""
        self.num_classes = num_classes
        self.head = LinearHead(self.num_features, num_classes)


def plain_mamba_l1(**options: Any) -> PlainMamba:
    """PlainMamba-L1: 7.6 M parameters."""
    return PlainMamba(**{"depthwise": (0,), **options})


def plain_mamba_l2(**options: Any) -> PlainMamba:
    """PlainMamba-L2: 26.1 M parameters."""
    return PlainMamba(**{"embed_dim": 384, "stem_convs": 2, **options})


def plain_mamba_l3(**options: Any) -> PlainMamba:
    """PlainMamba-L3: 51.0 M parameters."""
    return PlainMamba(**{"embed_dim": 448, "depth": 36, "stem_convs": 2, **options})

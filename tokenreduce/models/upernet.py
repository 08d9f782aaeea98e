"""Segmentation with a plain vision transformer: UPerNet on maps of four of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenreduce.errors import InvalidValueError

BINS = (1, 2, 3, 6)


class UPerNet(nn.Module):
    """UPerNet (Xiao et al., ECCV 2018, arXiv 1807.10221) for one task, on a timm vision transformer whose maps are
    resized as BEiT does (arXiv 2106.08254): with patches of 16 pixels to strides 4, 8, 16 and 32.

    Departure from BEiT: the maps pass the backbone's last norm, so that any depth gives values of one scale.

    Args:
        backbone: a timm model with `forward_intermediates`.
        classes: number of classes K.
        channels: channels inside the head.
        taps: the four layers (0-based) whose maps are read, ascending; None: a quarter of the depth apart.
    """

    def __init__(self, backbone: Any, classes: int, channels: int = 256, taps: Sequence[int] | None = None) -> None:
        super().__init__()
        width, depth = backbone.num_features, len(backbone.blocks)
        self.backbone = backbone
        self.taps = [depth * part // 4 - 1 for part in (1, 2, 3, 4)] if taps is None else list(taps)
        if len(self.taps) != 4 or sorted(set(self.taps)) != self.taps or not 0 <= self.taps[0] <= self.taps[3] < depth:
            raise InvalidValueError(
                f"taps is {taps!r} for {depth} layers; give four layers between 0 and {depth - 1}, in ascending order"
            )
        self.resize = nn.ModuleList([_resize(width, scale) for scale in (4, 2, 1, 0.5)])
        self.pool = PyramidPooling(width, channels)
        self.lateral = nn.ModuleList([_conv(width, channels, 1) for _ in range(3)])
        self.smooth = nn.ModuleList([_conv(channels, channels, 3) for _ in range(3)])
        self.fuse = _conv(4 * channels, channels, 3)
        self.classify = nn.Conv2d(channels, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, K, H, W)` from images `(B, C, H, W)`."""
        maps = self.backbone.forward_intermediates(images, indices=self.taps, norm=True, intermediates_only=True)
        resized = [resize(x) for resize, x in zip(self.resize, maps, strict=True)]
        return _upsample(self.decode(resized), images)

    def decode(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits `(B, K, h, w)` of four maps `(B, D, ., .)`, the finest, of `h x w`, first."""
        x = self.pool(maps[3])
        merged = [x]
        for level in (2, 1, 0):
            x = self.lateral[level](maps[level]) + _upsample(x, maps[level])
            merged.append(self.smooth[level](x))
        return self.classify(self.fuse(torch.cat([_upsample(x, maps[0]) for x in reversed(merged)], 1)))


class PyramidPooling(nn.Module):
    """A map `(B, D, h, w)` beside its averages in 1, 4, 9 and 36 cells (Zhao et al., CVPR 2017, arXiv 1612.01105), as
    `(B, channels, h, w)`."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.reduce = nn.ModuleList([_conv(width, channels, 1) for _ in BINS])
        self.join = _conv(width + len(BINS) * channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [reduce(F.adaptive_avg_pool2d(x, cells)) for reduce, cells in zip(self.reduce, BINS, strict=True)]
        return self.join(torch.cat([x, *(_upsample(cells, x) for cells in pooled)], 1))


def _upsample(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


def _conv(width: int, channels: int, side: int) -> nn.Module:
    convolution = nn.Conv2d(width, channels, side, padding=side // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU())


def _resize(width: int, scale: float) -> nn.Module:
    if scale == 4:
        first, second = (nn.ConvTranspose2d(width, width, 2, 2) for _ in range(2))
        return nn.Sequential(first, nn.BatchNorm2d(width), nn.GELU(), second)
    if scale == 2:
        return nn.ConvTranspose2d(width, width, 2, 2)
    return nn.MaxPool2d(2) if scale == 0.5 else nn.Identity()

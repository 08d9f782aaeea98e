"""Detection with a plain vision transformer: ViTDet's simple feature pyramid under torchvision's detectors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class SimpleFeaturePyramid(nn.Module):
    """Maps at several scales, all made of the last map of a timm vision transformer (Li et al., ECCV 2022, arXiv
    2203.16527).

    Args:
        backbone: a timm model with `forward_intermediates`.
        out_channels: channels of every map.
        scales: size of each map relative to the tokens' grid: 4, 2, 1 or 0.5, finest first.
    """

    def __init__(self, backbone: Any, out_channels: int = 256, scales: Sequence[float] = (4, 2, 1, 0.5)) -> None:
        super().__init__()
        self.backbone, self.out_channels, self.scales = backbone, out_channels, tuple(scales)
        self.levels = nn.ModuleList([_level(backbone.num_features, out_channels, scale) for scale in scales])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps `(B, out_channels, h, w)` of images `(B, C, H, W)`, named by their scale."""
        [tokens] = self.backbone.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
        return OrderedDict(
            (f"{scale:g}x", level(tokens)) for scale, level in zip(self.scales, self.levels, strict=True)
        )


def _level(width: int, out_channels: int, scale: float) -> nn.Module:
    steps: list[nn.Module] = []
    if scale == 0.5:
        steps = [nn.MaxPool2d(2)]
    elif scale in (2, 4):
        while scale > 1:
            steps += [nn.ConvTranspose2d(width, width // 2, 2, 2), nn.GELU()]
            width, scale = width // 2, scale / 2
    return nn.Sequential(
        *steps,
        nn.Conv2d(width, out_channels, 1, bias=False),
        nn.GroupNorm(1, out_channels),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        nn.GroupNorm(1, out_channels),
    )


def fcos(pyramid: SimpleFeaturePyramid, classes: int, size: int, convs: int = 4, **arguments: Any) -> Any:
    """torchvision's FCOS (Tian et al., ICCV 2019, arXiv 1904.01355) on the maps of `pyramid`.

    Args:
        classes: number of classes, background included.
        size: side of the square images that the backbone takes.
        convs: convolutions in each branch of the head.
        arguments: what else `torchvision.models.detection.FCOS` takes, such as `image_mean`.
    """
    from torchvision.models.detection import FCOS
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.fcos import FCOSHead

    patch = pyramid.backbone.patch_embed.patch_size[0]
    strides = tuple((round(patch / scale),) for scale in pyramid.scales)
    return FCOS(
        pyramid,
        classes,
        min_size=size,
        max_size=size,
        fixed_size=(size, size),
        size_divisible=1,
        anchor_generator=AnchorGenerator(strides, ((1.0,),) * len(strides)),
        head=FCOSHead(pyramid.out_channels, 1, classes, num_convs=convs),
        **arguments,
    )

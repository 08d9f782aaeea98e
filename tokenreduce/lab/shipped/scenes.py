"""The dense models that ship with the library, both trained on `scenes`: a segmenter and a detector."""

from __future__ import annotations

from typing import Any

from torch import nn

from tokenreduce.lab.data import fashion_mnist, scenes
from tokenreduce.lab.shipped.weights import ASSETS, with_weights
from tokenreduce.models.pyramid import SimpleFeaturePyramid, fcos
from tokenreduce.models.segmenter import LinearSegmenter

WIDTH, HEADS, DEPTH, PATCH = 96, 3, 12, 5
AUXILIARY = (5, 7)


def build_backbone(patch_size: int = PATCH) -> nn.Module:
    """A plain timm `VisionTransformer` for 80 x 80 grey images, 256 + 1 tokens; its own head says which garments a
    scene shows. Random weights."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=scenes.SIZE,
        patch_size=patch_size,
        in_chans=1,
        num_classes=len(fashion_mnist.CLASSES),
        embed_dim=WIDTH,
        num_heads=HEADS,
        depth=DEPTH,
    )


def build_segmenter(patch_size: int = PATCH) -> LinearSegmenter:
    """The segmenter with random weights."""
    # As many predictions along a side of the scene whatever the patches are.
    return LinearSegmenter(build_backbone(patch_size), len(scenes.CLASSES), 2 * patch_size // PATCH, AUXILIARY)


def build_detector() -> Any:
    """The detector with random weights."""
    pyramid = SimpleFeaturePyramid(build_backbone(), out_channels=64, scales=(1, 0.5))
    mean, std = [fashion_mnist.MEAN], [fashion_mnist.STD]
    return fcos(pyramid, len(scenes.CLASSES), scenes.SIZE, convs=2, image_mean=mean, image_std=std, score_thresh=0.05)


def scene_segmenter(pretrained: bool = True) -> LinearSegmenter:
    """The shipped segmenter in eval mode, input `(B, 1, 80, 80)`, output logits `(B, 11, 80, 80)`."""
    model = build_segmenter()
    return with_weights(model, ASSETS / "scene_segmenter.safetensors") if pretrained else model.eval()


def scene_detector(pretrained: bool = True) -> Any:
    """The shipped detector in eval mode, input a list of `(1, 80, 80)` in 0 to 1, output torchvision's dicts."""
    model = build_detector()
    return with_weights(model, ASSETS / "scene_detector.safetensors") if pretrained else model.eval()

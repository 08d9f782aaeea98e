"""How images are prepared for the released weights of state-space models."""

from __future__ import annotations

from typing import Any


def evaluated(channels: int, size: tuple[int, int]) -> dict[str, Any]:
    """What timm calls a model's `pretrained_cfg`: the official evaluation scales the short side to 256 of 224 pixels by
    bicubic interpolation and takes the middle, normalised as ImageNet is."""
    return {
        "input_size": (channels, *size),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    }

"""From a model and images to one feature each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tokenreduce.errors import InvalidValueError, unknown
from tokenreduce.lab.quality.heads import features_of, whole_forward
from tokenreduce.lab.token_places import class_place, image_tokens
from tokenreduce.patching.finding import find_backbone

POOLS = ("features", "class", "mean")


def pooled(model: Any, images: Tensor, pool: str) -> Tensor:
    """Features `(B, C)` float32: "features", what the model's head reads; "class", the class token of the last layer;
    "mean", the mean of its image tokens, which takes a model that gives all of them back."""
    if pool == "features":
        return features_of(model, images).float()
    _, backbone, adapter = find_backbone(model)
    tokens, geometry = whole_forward(model, images)[2], adapter.geometry(backbone)
    found = image_tokens(tokens, geometry).mean(1) if pool == "mean" else tokens[:, class_place(tokens, geometry)]
    return found.float()


def try_out(model: Any, transform: Callable[[Image.Image], Tensor], pool: str) -> tuple[tuple[int, ...], int]:
    """The shape `(C, H, W)` of the model's input, and the channels of a feature, from a grey picture.

    Raises: ValueError if the model has no such feature.
    """
    if pool not in POOLS:
        raise unknown("pool", pool, POOLS)
    _, backbone, adapter = find_backbone(model)
    if pool == "class" and adapter.geometry(backbone).class_tokens == 0:
        raise InvalidValueError(f"{type(backbone).__name__} has no class token; use --pool features or mean")
    picture = transform(Image.new("RGB", (256, 256), (128, 128, 128)))
    try:
        with torch.inference_mode():
            found = pooled(model, picture[None].to(next(model.parameters()).device), pool)
    except (AttributeError, TypeError, RuntimeError, ValueError, AssertionError) as error:
        raise InvalidValueError(
            f"{type(model).__name__} does not give features of a picture {tuple(picture.shape)} ({error}); use a model "
            "of timm, or hf:NAME"
        ) from error
    if found.ndim != 2:
        raise InvalidValueError(f"the features of {type(model).__name__} are {tuple(found.shape)}; they must be (B, C)")
    return tuple(picture.shape), found.shape[1]

"""What a model takes of a picture: the size, the crop and the normalisation that its weights are evaluated with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from tokenreduce.lab.data import fashion_mnist
from tokenreduce.lab.pretrained import Pretrained

SIDE = 28  # of Fashion-MNIST's images


def takes_fashion(model: Any) -> bool:
    """Whether the model's input is `(B, 1, 28, 28)`."""
    embed: Any = getattr(model, "patch_embed", None)
    return getattr(embed, "img_size", None) == (SIDE, SIDE) and embed.proj.in_channels == 1


def image_transform(model: Any, whole: bool = False) -> Callable[[Image.Image], Tensor]:
    """What turns a PIL image into the input that the weights of `model` were trained on.

    Args:
        whole: nothing is cropped from a square, also where models are officially evaluated on its middle.
    """
    if isinstance(model, Pretrained):
        return model.transform(whole)
    if takes_fashion(model):
        return fashion_input
    from timm.data import create_transform, resolve_model_data_config

    config = resolve_model_data_config(model)
    return create_transform(**config | ({"crop_pct": 1.0} if whole else {}), is_training=False)


def input_side(model: Any) -> int:
    """The width of the model's input in pixels."""
    if isinstance(model, Pretrained):
        return model.input_shape[-1]
    if takes_fashion(model):
        return SIDE
    from timm.data import resolve_model_data_config

    return resolve_model_data_config(model)["input_size"][-1]


def fashion_input(picture: Image.Image) -> Tensor:
    """The middle of a picture as a model of Fashion-MNIST takes it, `(1, 28, 28)`."""
    return fashion_mnist.normalise(grey_pixels(picture))


def grey_pixels(picture: Image.Image) -> Tensor:
    """The middle of a picture, grey and small: `(1, 28, 28)` uint8."""
    grey = ImageOps.fit(picture.convert("L"), (SIDE, SIDE))
    return torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8).view(1, SIDE, SIDE)


def normalisation(model: Any) -> tuple[Any, Any]:
    """Mean and standard deviation that images were normalised with."""
    if isinstance(model, Pretrained) and model.processor is not None:
        return model.processor.image_mean, model.processor.image_std
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config({} if isinstance(model, Pretrained) else model)
    return config["mean"], config["std"]

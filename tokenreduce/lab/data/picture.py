"""One image to draw, from a file or of those that ship, and the same image as a model takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.data import fashion_mnist, photographs
from tokenreduce.lab.data.decoding import NotAnImageError, decode, fitted
from tokenreduce.lab.data.inputs import grey_pixels, image_transform, normalisation, takes_fashion

SHIPPED = 13  # which of the shipped images is drawn where none is given and no photographs are installed: an ankle boot


def load_image(path: Path | None, model: Any, upright: bool = True) -> tuple[Tensor, Tensor]:
    """What to draw, `(1 or 3, H, W)` in [0, 1], and what `model` takes, of an image file or of an image that is there:
    a photograph if `model` takes these and some are installed, else a shipped garment.

    Both show what is left after the resizing and cropping that the model is evaluated with. `upright` turns the picture
    as its EXIF orientation says.
    """
    if path is None and not takes_fashion(model):
        path = next(iter(photographs.installed()), None)
    picture = shipped_image() if path is None else open_image(path, upright)
    if takes_fashion(model):
        pixels = grey_pixels(picture)
        return pixels, fashion_mnist.normalise(pixels)
    inputs = fitted(picture, image_transform(model), path or Path("the shipped image"))
    mean, std = (torch.tensor(value)[:, None, None] for value in normalisation(model))
    return (inputs * std + mean).clamp(0, 1), inputs


def shipped_image() -> Image.Image:
    images, _ = fashion_mnist.load("test", fashion_mnist.SUBSET)
    return Image.fromarray(images[SHIPPED, 0].numpy())


def open_image(path: Path, upright: bool) -> Image.Image:
    try:
        return decode(path, upright=upright)
    except NotAnImageError:
        what = "is not an image that Pillow can read" if path.is_file() else "is no file"
        raise InvalidValueError(f"--image {path} {what}; give a PNG or JPEG file, or leave --image out") from None

"""Images without labels, as a model takes them, and where each comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.data import fashion_mnist, photographs
from tokenreduce.lab.data.decoding import UnreadableError, decode, hidden, is_image
from tokenreduce.lab.data.folders import FashionImages, image_transform, takes_fashion
from tokenreduce.lab.data.picture import grey_pixels


@dataclass(frozen=True)
class Unlabelled:
    """Images `(n, C, H, W)` as a model takes them, and the source of each.

    Args:
        left_out: why files could not be read, a sentence each.
    """

    images: Tensor
    sources: list[str]
    left_out: tuple[str, ...] = ()


def load_unlabelled(
    name: str,
    model: Any,
    limit: int,
    *,
    data_dir: Path | None = None,
    by_folder: bool = False,
    upright: bool = True,
) -> Unlabelled:
    """`limit` images: of "photographs" (squares cut out of those that pip installs), of the training split of
    "fashion-mnist", or of a folder, with all folders in it.

    Args:
        data_dir: where the files of Fashion-MNIST lie.
        by_folder: images of a folder come from one source where they lie in one folder; else each is its own.

    Raises: ValueError if there are none.
    """
    if name == photographs.NAME:
        squares, sources = photographs.photographs(limit)
        transform = transform_of(model)
        pictures = [Image.fromarray(square.permute(1, 2, 0).numpy()) for square in squares]
        return Unlabelled(torch.stack([transform(picture) for picture in pictures]), sources)
    if name == "fashion-mnist":
        images, labels = fashion_mnist.load("train", fashion_mnist.find(data_dir))
        chosen = spread(len(images), limit)
        data = FashionImages(images[chosen], labels[chosen], model)
        return Unlabelled(torch.stack([data[i][0] for i in range(len(data))]), [f"{name} {i}" for i in chosen])
    return load_files(Path(name), model, limit, by_folder, upright)


def load_files(root: Path, model: Any, limit: int, by_folder: bool, upright: bool) -> Unlabelled:
    """Images of a folder, spread evenly over its files in the order of their paths."""
    if not root.is_dir():
        raise InvalidValueError(f"no images {str(root)!r}; valid: {photographs.NAME}, fashion-mnist, or a folder")
    files = [path for path in sorted(root.rglob("*")) if is_image(path) and not hidden(path.parent)]
    transform = transform_of(model)
    found, sources, left_out = [], [], []
    for index in spread(len(files), limit):
        try:
            found.append(transform(decode(files[index], upright=upright).convert("RGB")))
        except UnreadableError as error:
            left_out.append(str(error))
            continue
        path = files[index].relative_to(root)
        sources.append(str(path.parent if by_folder else path))
    if not found:
        raise InvalidValueError(f"{root} holds no images that can be read; {'; '.join(left_out[:1])}")
    return Unlabelled(torch.stack(found), sources, tuple(left_out))


def transform_of(model: Any) -> Callable[[Image.Image], Tensor]:
    """What turns a picture into the input of `model`."""
    if takes_fashion(model):
        return lambda picture: fashion_mnist.normalise(grey_pixels(picture))
    transform: Callable[[Image.Image], Tensor] = image_transform(model)
    return transform


def spread(count: int, limit: int) -> list[int]:
    """`limit` numbers below `count` at even distances, or all."""
    if limit < 1:
        raise InvalidValueError(f"the number of images is {limit}; it must be 1 or more")
    return list(range(count)) if limit >= count else [i * count // limit for i in range(limit)]

"""Images without labels, as a model takes them, and where each comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.data import fashion_mnist, photographs
from tokenreduce.lab.data.class_folders import SQUARE, check_sizes
from tokenreduce.lab.data.decoding import UnreadableError, looking, read_input, refuse_unturned
from tokenreduce.lab.data.folders import IN_MEMORY, FashionImages, refuse_data_dir
from tokenreduce.lab.data.inputs import image_transform, input_side
from tokenreduce.lab.data.plain_folders import list_plain
from tokenreduce.lab.data.samples import spread


@dataclass(frozen=True)
class Unlabelled:
    """Images `(n, C, H, W)` as a model takes them, and the source of each.

    Args:
        left_out: why files could not be read, a sentence each.
    """

    images: Tensor
    sources: list[str]
    left_out: tuple[str, ...] = ()


@looking()
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

    Raises: ValueError if there are none, TypeError for a `data_dir` or `upright=False` that they do not use.
    """
    refuse_data_dir(name, data_dir, ("fashion-mnist",))
    if name in IN_MEMORY:
        refuse_unturned(name, upright)
    if name == photographs.NAME:
        data: Any = photographs.Squares(image_transform(model, whole=True), input_side(model), limit)
        return Unlabelled(torch.stack([data[i][0] for i in range(len(data))]), data.names)
    if name == "fashion-mnist":
        images, labels = fashion_mnist.load("train", fashion_mnist.find(data_dir))
        chosen = spread(len(images), limit)
        data = FashionImages(images[chosen], labels[chosen], model)
        return Unlabelled(torch.stack([data[i][0] for i in range(len(data))]), [f"{name} {i}" for i in chosen])
    return load_files(Path(name), model, limit, by_folder, upright)


def load_files(root: Path, model: Any, limit: int, by_folder: bool, upright: bool) -> Unlabelled:
    """Images of a folder, spread evenly over its files in the order of their paths."""
    if root.is_file():
        raise InvalidValueError(f"{root} is a file; give the folder that it lies in")
    if not root.is_dir():
        raise InvalidValueError(f"no images {str(root)!r}; valid: {photographs.NAME}, fashion-mnist, or a folder")
    files = [path for path, _ in list_plain(root).images]
    transform, found, sources, left_out = image_transform(model), [], [], []
    for index in spread(len(files), limit):
        try:
            found.append(read_input(files[index], transform, upright=upright))
        except UnreadableError as error:
            left_out.append(str(error))
            continue
        path = files[index].relative_to(root)
        sources.append(str(path.parent if by_folder else path))
    if not found:
        raise InvalidValueError(f"no image in {root} can be read; the first: {left_out[0]}")
    check_sizes(found, SQUARE)
    return Unlabelled(torch.stack(found), sources, tuple(left_out))

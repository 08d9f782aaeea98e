"""Photographs that pip installs: those of scikit-image and scikit-learn, cut into squares."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.data.decoding import decode
from tokenreduce.lab.data.plain_folders import NO_LABEL

NAME = "photographs"
# The photographs of each package; drawings, charts and textures that it also brings are left out.
PACKAGES = {
    ("skimage", "data"): (
        "astronaut.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "motorcycle_left.png", "rocket.jpg",
    ),
    ("sklearn", "datasets/images"): ("china.jpg", "flower.jpg"),
}  # fmt: skip
COUNT = 64  # squares that commands cut where the user says nothing
LEAST_AREA = 0.3  # of a square crop, as a share of the largest one


def installed() -> list[Path]:
    """The files that are installed, in a fixed order."""
    found = []
    for (package, folder), names in PACKAGES.items():
        spec = find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            root = Path(spec.submodule_search_locations[0]) / folder
            found += [root / name for name in names if (root / name).is_file()]
    return found


def sources() -> list[Path]:
    """The files that are installed.

    Raises: ValueError if there are none.
    """
    found = installed()
    if not found:
        raise InvalidValueError(
            f"{NAME} are those of scikit-image and scikit-learn, of which neither is installed: "
            "pip install 'tokenreduce[real]'"
        )
    return found


class Squares(Dataset[tuple[Tensor, int]]):
    """Squares of photographs as a model takes them, without labels.

    Args:
        transform: from a picture to the model's input.
        side: of the squares before that, in pixels.
        count: how many squares.
    """

    def __init__(self, transform: Callable[[Image.Image], Tensor], side: int, count: int) -> None:
        self.squares, self.names = photographs(count, side)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.squares)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.squares[index].permute(1, 2, 0).numpy())), NO_LABEL


def photographs(
    count: int = COUNT, size: int = 224, seed: int = 0, files: Iterable[Path] | None = None
) -> tuple[Tensor, list[str]]:
    """Squares cut out of photographs, each scaled to `size`: images `(count, 3, size, size)` uint8 and the name of the
    photograph that each comes from.

    The photographs take turns. The first square of each is the largest in its middle, the next ones are drawn.

    Args:
        files: other photographs than `sources()`.

    Raises: ValueError if there are no photographs or `count` is below 1.
    """
    pictures = [
        (path.stem, decode(path, upright=True).convert("RGB")) for path in (sources() if files is None else files)
    ]
    if count < 1 or not pictures:
        raise InvalidValueError(f"count is {count} of {len(pictures)} photographs; both must be 1 or more")
    generator = torch.Generator().manual_seed(seed)
    chosen = [pictures[i % len(pictures)] for i in range(count)]
    squares = [cut(picture, size, None if i < len(pictures) else generator) for i, (_, picture) in enumerate(chosen)]
    return torch.stack(squares), [name for name, _ in chosen]


def cut(picture: Image.Image, size: int, generator: torch.Generator | None) -> Tensor:
    """A square of the picture, `(3, size, size)` uint8: a drawn one, or the largest in the middle."""
    largest = min(picture.size)
    if generator is None:
        share, across, down = 1.0, 0.5, 0.5
    else:
        share, across, down = torch.rand(3, generator=generator).tolist()
        share = (LEAST_AREA + (1 - LEAST_AREA) * share) ** 0.5
    side = largest * share
    left, top = (picture.width - side) * across, (picture.height - side) * down
    box = (left, top, left + side, top + side)
    scaled = picture.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return torch.from_numpy(np.array(scaled)).permute(2, 0, 1).contiguous()

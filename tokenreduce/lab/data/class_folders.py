"""A folder that holds one folder a class: which files are images of which class, and what is left out."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.data.decoding import ENDINGS, hidden, is_image, looking, read_input

# What to type where pictures must become one size; weights with positions may fit one size alone.
SQUARE = "--image-size N, which scales each picture to N x N where the weights allow it"


@dataclass(frozen=True)
class Listing:
    """The class folders in natural order, empty ones too, the images with their folder's number, and other files."""

    folders: tuple[str, ...]
    images: tuple[tuple[Path, int], ...]
    others: tuple[Path, ...]


@dataclass(frozen=True)
class FolderImages(Dataset[tuple[Tensor, int]]):
    """Images of class folders as a model takes them.

    Args:
        labels: the class number of each folder.
        upright: whether pictures are turned as their EXIF orientation says.
    """

    listing: Listing
    transform: Callable[[Image.Image], Tensor]
    labels: Sequence[int]
    upright: bool = True

    def __len__(self) -> int:
        return len(self.listing.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, folder = self.listing.images[index]
        return read_input(path, self.transform, upright=self.upright), self.labels[folder]


@dataclass(frozen=True)
class Tolerant(Dataset[Any]):
    """The images, with the reason in place of one that cannot be read. Of a class of the module, as processes that
    are started afresh need it."""

    images: Any

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.images[index]
        except InvalidValueError as error:
            return str(error)


@dataclass
class Batches:
    """Batches of images and labels of those that can be read, as often as they are iterated over.

    Args:
        loader: gives the batches of `sort_out`.
        left_out: filled with the reason for each image that cannot be read.
    """

    loader: Any
    left_out: dict[str, None] = field(default_factory=dict)

    def __iter__(self) -> Any:
        some = False
        for batch, reasons in map(of_one_size, self.loader):
            self.left_out |= dict.fromkeys(reasons)
            if batch is not None:
                some = True
                yield batch
        if not some and self.left_out:
            raise InvalidValueError(
                f"none of the {len(self.left_out)} images can be read; the first: {next(iter(self.left_out))}"
            )

    def __len__(self) -> int:
        return len(self.loader)


def sort_out(items: Sequence[Any]) -> tuple[Any, list[str]]:
    """A batch of what could be read, None if there is nothing, and why the rest could not. Images of several sizes stay
    a list: see `of_one_size`."""
    read = [item for item in items if not isinstance(item, str)]
    sizes = {image.shape for image, _ in read if isinstance(image, Tensor)}
    batch = read if len(sizes) > 1 else default_collate(read) if read else None
    return batch, [item for item in items if isinstance(item, str)]


def of_one_size(found: tuple[Any, list[str]]) -> tuple[Any, list[str]]:
    """What `sort_out` gave, in the process that asked for it: an error of a worker would be a traceback.

    Raises: ValueError for images of several sizes, which no batch can hold.
    """
    if isinstance(found[0], list) and isinstance(found[0][0], tuple):
        check_sizes([image for image, _ in found[0]], "--batch-size 1")
    return found


def check_sizes(images: Sequence[Tensor], cure: str) -> None:
    """Raise unless all images have one shape; `cure` is what to type else."""
    one, *others = dict.fromkeys(tuple(image.shape) for image in images)
    if others:
        raise InvalidValueError(
            f"the model's image processor keeps the aspect ratio: it makes {one} of one picture and {others[0]} of "
            f"another, which no batch can hold; give {cure}, or pictures of one size"
        )


def list_folder(root: Path) -> Listing:
    """What `root` holds; hidden files count nowhere.

    Raises: ValueError if images lie beside the class folders or deeper in them, or there are none.
    """
    entries = visible(root)
    names = sorted((path.name for path in entries if path.is_dir()), key=natural)
    stray = [path for path in entries if not path.is_dir() and is_image(path)]
    if stray and names:
        raise InvalidValueError(
            f"{stray[0]}{more(stray)} lies beside the class folders and has no class; move it, expected "
            f"{root}/<class>/<image>, or leave the labels out with --head none"
        )
    inside = [(path, number) for number, name in enumerate(names) for path in visible(root / name)]
    nested = [path for path, _ in inside if path.is_dir()]
    if nested:
        raise InvalidValueError(
            f"{nested[0]}{more(nested)} is a folder in a class folder, and which of both is the class is unknown; "
            f"expected {root}/<class>/<image>, or leave the labels out with --head none"
        )
    images = tuple((path, number) for path, number in inside if is_image(path))
    others = [path for path in entries if not path.is_dir()] + [path for path, _ in inside if not is_image(path)]
    if not images:
        raise InvalidValueError(
            f"{root} holds no images; expected {root}/<class>/<image>, or images alone{instead(others)}"
        )
    return Listing(tuple(names), images, tuple(others))


@looking()
def visible(folder: Path) -> list[Path]:
    """What lies in the folder, in natural order, but hidden files."""
    return sorted((path for path in folder.iterdir() if not hidden(path)), key=lambda path: natural(path.name))


def natural(name: str) -> tuple[list[Any], str]:
    """A key that sorts class2 before class10, as timm does; 1.jpg and 01.jpg are in the same order everywhere."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name.lower())], name


def more(paths: Sequence[Path]) -> str:
    return f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""


def instead(others: Sequence[Path]) -> str:
    """What lies where images should, and the names that images have."""
    return f"; it holds {others[0]}{more(others)}, and images end in {', '.join(sorted(ENDINGS))}" if others else ""

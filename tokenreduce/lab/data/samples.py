"""What data sets of dense tasks share: `DenseData`, samples, and the reading and checking of files."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Subset

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.data.decoding import NotAnImageError, UnreadableError, decode, hidden, is_image

TASKS = ("segmentation", "detection", "depth")
IGNORED = 255  # the class of pixels that do not count
UNKNOWN = -1
Sample = dict[str, Any]


@dataclass(frozen=True)
class DenseData:
    """Images with dense truth.

    Args:
        name: for people.
        task: "segmentation", "detection" or "depth".
        samples: map-style; each a dict of `image` (`(C, H, W)` uint8), `target` and `path`. Targets are class maps
            `(H, W)` int64 with 255 where nothing counts; or dicts of `boxes` `(n, 4)` (left, top, right, bottom, in
            pixels), `labels` `(n,)` and, where there are crowds, `iscrowd` `(n,)`; or metres `(H, W)` float32 with 0
            where they are unknown.
        classes: names by class number, numbers as in the targets; a name is empty where the layout does not tell it.
        farthest: metres that predictions of depth are clipped to, if any.
        left_out: why images could not be read, a sentence each; filled while they are read.
    """

    name: str
    task: str
    samples: Any
    classes: Mapping[int, str] = field(default_factory=dict)
    farthest: float | None = None
    left_out: dict[str, None] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.samples)

    def thinned(self, limit: int | None) -> DenseData:
        """`limit` of the images at even distances, or all of them.

        Raises: ValueError if `limit` is below 1.
        """
        return replace(self, samples=thin(self.samples, limit))

    def read(self, indices: Iterable[int]) -> list[Sample]:
        """The samples of these numbers, without those whose files cannot be read."""
        found = []
        for index in indices:
            try:
                found.append(self.samples[index])
            except UnreadableError as error:
                self.left_out[str(error)] = None
        return found

    def first(self) -> Sample:
        """The first sample that can be read.

        Raises: ValueError if there is none.
        """
        for index in range(len(self)):
            if found := self.read([index]):
                return found[0]
        raise InvalidValueError(f"none of the {len(self)} images can be read; the first: {next(iter(self.left_out))}")


@dataclass(frozen=True)
class ClassMaps:
    """Samples of image files with maps of labels beside them.

    Args:
        classes: `(labels,)`, the class of each label of the files, 255 for those that do not count, -1 for those that
            the data set does not have.
        known: which labels the data set has, for people.
    """

    images: Sequence[Path]
    annotations: Sequence[Path]
    classes: Tensor
    known: str

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        path, truth = self.images[index], self.annotations[index]
        image = read_image(path)
        labels = torch.from_numpy(read_map(truth, image, path)).long()
        strange = (labels >= len(self.classes)) | (self.classes[labels.clamp(0, len(self.classes) - 1)] == UNKNOWN)
        if strange.any():
            raise InvalidValueError(f"{truth} has label {int(labels[strange].max())}; {self.known}")
        return {"image": image, "target": self.classes[labels], "path": path}


def read_image(path: Path) -> Tensor:
    """An image file as `(3, H, W)` uint8, not turned: its truth belongs to the pixels as they are stored."""
    return torch.from_numpy(np.array(decode(path, upright=False).convert("RGB"))).permute(2, 0, 1).contiguous()


def read_map(path: Path, image: Tensor, image_path: Path) -> np.ndarray:
    """The grey or palette values `(H, W)` of a PNG file that belongs to `image` `(C, H, W)`.

    Raises: ValueError if it cannot be read, has colours or has another size than the image.
    """
    values = _read_map(path)
    if values.ndim != 2:
        raise InvalidValueError(f"{path} has {values.shape[2]} channels; an annotation has one number for each pixel")
    if values.shape != image.shape[1:]:
        height, width = image.shape[1:]
        raise InvalidValueError(
            f"{path} is {values.shape[1]} x {values.shape[0]} pixels, but its image {image_path} is {width} x {height}"
        )
    return values


def _read_map(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            return np.array(picture)
    except Exception as error:  # as in `decode`
        what = "does not exist" if not path.is_file() else f"is not an image that Pillow can read ({error})"
        raise NotAnImageError(f"{path} {what}; replace the file, or take its image out") from None


def find_files(folder: Path, pattern: str, layout: str) -> list[Path]:
    """The images in `folder` whose path `pattern` fits in lower or upper case, sorted by path.

    Raises: ValueError if there are none, with the `layout` that was expected.
    """
    places = folder.glob("/".join("*" for _ in pattern.split("/"))) if folder.is_dir() else ()
    fits = re.compile(fnmatch.translate(pattern), re.IGNORECASE)
    found = [
        path
        for path in sorted(places)
        if is_image(path) and not hidden(path.parent) and fits.match(path.relative_to(folder).as_posix())
    ]
    if not found:
        raise InvalidValueError(f"{folder} holds no {pattern}; expected {layout}")
    return found


def check_pairs(images: Sequence[Path], annotations: Sequence[Path]) -> None:
    """Raise if an image has no annotation file."""
    missing = [(image, truth) for image, truth in zip(images, annotations, strict=True) if not truth.is_file()]
    if missing:
        image, truth = missing[0]
        more = f" ({len(missing)} images lack theirs)" if len(missing) > 1 else ""
        raise InvalidValueError(f"{image} has no annotation: there is no {truth}{more}")


def thin(images: Any, limit: int | None) -> Any:
    """`limit` of the images at even distances, since folders come sorted by class; all of them if it is None."""
    return images if limit is None or limit >= len(images) else Subset(images, spread(len(images), limit))


def spread(count: int, limit: int | None) -> list[int]:
    """`limit` numbers below `count` at even distances, or all."""
    if limit is not None and limit < 1:
        raise InvalidValueError(f"the number of images is {limit}; it must be 1 or more")
    return list(range(count)) if limit is None or limit >= count else [i * count // limit for i in range(limit)]

"""The images of a comparison, read once before anything is measured: what they are, and those that are kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.journal import marks_of
from tokenreduce.lab.quality.features import Batch
from tokenreduce.lab.quality.loading import Loaded

MEMORY = 2**30  # bytes of images that are decoded once and kept, with what the unpatched model makes of them


@dataclass(frozen=True)
class Images:
    """What was read.

    Args:
        batches: images and labels; in memory if these are few, and else read again each time.
        kept: whether they are in memory.
        marks: a hash of each image that could be read.
        labels: of the same images.
        first: the first images, as far as they have one size, `(n, ...)`.
    """

    batches: Iterable[Batch]
    kept: bool
    marks: list[str]
    labels: list[int]
    first: Tensor


def read_images(loaded: Loaded, count: int) -> Images:
    """Read all images; the first `count` of one size are kept in any case.

    Raises: ValueError if no image can be read.
    """
    stream = loaded.encode(loaded.images)
    batches: list[Batch] = []
    first: list[Tensor] = []
    marks: list[str] = []
    labels: list[int] = []
    small = True
    for images, numbers in stream:
        small = small and len(loaded.images) * images[0].nbytes <= MEMORY
        batches += [(images, numbers)] if small else []
        if sum(map(len, first)) < count and (not first or images.shape[1:] == first[0].shape[1:]):
            first.append(images[: count - sum(map(len, first))])
        marks += marks_of(images)
        labels += numbers.tolist()
    if not marks:
        raise InvalidValueError(f"{loaded.images.name} has no images; give a folder with at least one")
    held: Any = batches if small else stream
    return Images(held, small, marks, labels, torch.cat(first))

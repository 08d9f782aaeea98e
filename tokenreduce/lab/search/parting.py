"""Images as a search takes them: one tensor, parted by source into those that choose and those that check."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenreduce.errors import InvalidTypeError, InvalidValueError

BATCH = 8


@dataclass(frozen=True)
class Parts:
    """Numbers of the images in batches: first those that choose, then those that check, never of one source.

    Args:
        choosing: so many batches choose, in which sources take turns.
        sources: the source of every image of the batches that check, numbered from 0.
    """

    batches: list[list[int]]
    choosing: int
    sources: list[int]
    groups: int  # sources of all images

    @property
    def choose(self) -> list[int]:
        """The batches that choose."""
        return list(range(self.choosing))

    @property
    def check(self) -> list[int]:
        """The batches that check."""
        return list(range(self.choosing, len(self.batches)))

    def count(self, batches: Sequence[int]) -> int:
        """The number of images in these batches."""
        return sum(len(self.batches[batch]) for batch in batches)


def collect(images: Any) -> Tensor:
    """Images `(n, C, H, W)` of a tensor, or of an iterable of batches or of (batch, labels).

    Raises: TypeError or ValueError if that is not what they are.
    """
    if not isinstance(images, Tensor):
        if not isinstance(images, Iterable) or isinstance(images, (str, bytes)):
            raise InvalidTypeError(f"images is a {type(images).__name__}; give a tensor (n, C, H, W), or batches of it")
        parts = [batch[0] if isinstance(batch, (tuple, list)) and batch else batch for batch in images]
        if not parts or not all(isinstance(part, Tensor) and part.ndim == 4 for part in parts):
            raise InvalidTypeError("images must give batches (n, C, H, W), alone or with labels, and at least one")
        if len({part.shape[1:] for part in parts}) > 1:
            raise InvalidValueError("the batches have images of different sizes; give images of one size")
        images = torch.cat(parts)
    if images.ndim != 4 or len(images) < 2 or not images.is_floating_point():
        raise InvalidValueError(
            f"images is a tensor {tuple(images.shape)} of {images.dtype}; give 2 or more images (n, C, H, W), as the "
            "model takes them"
        )
    return images


def part(images: int, sources: Sequence[Hashable] | None, share: float, seed: int) -> Parts:
    """Part images so that about `share` of the sources check; without `sources` each image is its own.

    Raises: ValueError for labels that do not fit the images, or of one source only.
    """
    labels = list(range(images)) if sources is None else list(sources)
    if len(labels) != images:
        raise InvalidValueError(f"sources has {len(labels)} labels for {images} images; give one for each image")
    groups: dict[Hashable, list[int]] = {}
    for index, label in enumerate(labels):
        groups.setdefault(label, []).append(index)
    if len(groups) < 2:
        raise InvalidValueError("all images are of one source; what is chosen on some must be checked on others")
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist()
    shuffled = [list(groups.values())[place] for place in order]
    checking = min(len(groups) - 1, max(1, round(share * len(groups))))
    checked = shuffled[:checking]
    chosen = in_turns(shuffled[checking:])
    held = [index for group in checked for index in group]
    numbers = [number for number, group in enumerate(checked) for _ in group]
    batches = split(chosen)
    return Parts(batches + split(held), len(batches), numbers, len(groups))


def in_turns(groups: Sequence[Sequence[int]]) -> list[int]:
    """The members of all groups: the first of each, then the second of each, and so on."""
    longest = max(map(len, groups))
    return [group[place] for place in range(longest) for group in groups if place < len(group)]


def split(numbers: Sequence[int]) -> list[list[int]]:
    return [list(numbers[start : start + BATCH]) for start in range(0, len(numbers), BATCH)]

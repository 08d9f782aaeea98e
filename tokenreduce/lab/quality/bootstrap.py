"""The paired bootstrap: images are drawn again with replacement, the same ones for every model."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.errors import InvalidValueError


def draw(images: int, rounds: int, seed: int = 0) -> Tensor:
    """How often each image is in each of `rounds` draws, `(rounds, images)`; a draw has as many images as there are.

    Raises: ValueError if there are no rounds or no images.
    """
    if rounds < 1 or images < 1:
        raise InvalidValueError(f"rounds is {rounds} and there are {images} images; both must be 1 or more")
    return times(torch.randint(images, (rounds, images), generator=torch.Generator().manual_seed(seed)), images)


def times(picks: Tensor, images: int) -> Tensor:
    """How often each image occurs, `(rounds, images)` float64, in image numbers `(rounds, n)`."""
    zeros = torch.zeros(picks.shape[0], images, dtype=torch.float64)
    return zeros.scatter_add_(1, picks, torch.ones_like(picks, dtype=torch.float64))


def interval(figures: Tensor) -> tuple[float, float]:
    """The middle 95 % of a figure `(rounds,)`; draws that have none (NaN) are left out."""
    low, high = figures.double().nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high

"""`scenes`: canvases composed on the fly from Fashion-MNIST photographs, with pixel labels and boxes.

Up to six garments of different scale overlap on a cluttered background. Labels come from the photographs' own
foreground. Scenes of a split hold photographs of that split only, in the clutter too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenreduce.lab.data import fashion_mnist

SIZE = 80
SLOTS = 6  # garments tried in each scene; those that would be hidden too much are left out
CLASSES = ("background", *fashion_mnist.CLASSES)
VISIBLE = 0.7  # the least part of a garment that others leave uncovered
CHUNK = 32  # scenes made of one random state, so that the first scenes do not depend on how many follow


@dataclass(frozen=True)
class Scenes:
    """Composed images and their truth.

    Args:
        images: `(n, 1, 80, 80)` uint8.
        masks: `(n, 80, 80)` int64, 0 for background, 1 + the garment's class elsewhere.
        boxes: `(n, 6, 4)` float, left, top, right, bottom of what is visible, in pixels; right and bottom exclusive.
        labels: `(n, 6)` int64, 1 + the garment's class, 0 where there is no garment.
    """

    images: Tensor
    masks: Tensor
    boxes: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return self.images.shape[0]

    def objects(self, index: int) -> dict[str, Tensor]:
        """Boxes `(m, 4)` and labels `(m,)` of one scene, as torchvision's detectors take them."""
        real = self.labels[index] > 0
        return {"boxes": self.boxes[index][real], "labels": self.labels[index][real]}


def load(count: int = 500, split: str = "test", folder: str | Path = fashion_mnist.SUBSET, seed: int = 0) -> Scenes:
    """`count` scenes of the photographs of `split` in `folder`; the same scenes for the same arguments."""
    return compose(*fashion_mnist.load(split, folder), count, seed)


def compose(photos: Tensor, classes: Tensor, count: int, seed: int) -> Scenes:
    """`count` scenes from `photos (p, 1, 28, 28)` uint8 and their `classes (p,)`."""
    generator = torch.Generator()
    parts = []
    for chunk in range((count + CHUNK - 1) // CHUNK):
        generator.manual_seed(1_000_003 * seed + chunk)
        parts.append(_compose_chunk(photos, classes, generator))
    images, masks, boxes, labels = (torch.cat(field)[:count] for field in zip(*parts, strict=True))
    return Scenes(images, masks, boxes, labels)


def foreground(photos: Tensor) -> Tensor:
    """Where a photograph `(p, 1, 28, 28)` shows its garment: what is not black, and what that surrounds."""
    bright = photos > 10
    sides = [
        bright.flip(dim).cummax(dim).values.flip(dim) if flip else bright.cummax(dim).values
        for dim in (-1, -2)
        for flip in (False, True)
    ]
    return bright | torch.stack(sides).all(0)


def normalise(images: Tensor) -> Tensor:
    """uint8 scenes to the float inputs the shipped models were trained on."""
    return fashion_mnist.normalise(images)


def _compose_chunk(photos: Tensor, classes: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
    canvas = _background(photos, generator)
    count = torch.randint(3, SLOTS + 1, (CHUNK, 1, 1, 1), generator=generator)
    owner = torch.zeros(CHUNK, 1, SIZE, SIZE, dtype=torch.long)  # which garment a pixel shows, 1 the foremost
    labels = torch.zeros(CHUNK, SLOTS, dtype=torch.long)
    for slot in range(SLOTS):
        chosen = torch.randint(len(photos), (CHUNK,), generator=generator)
        size = 28 * _uniform((1.2, 1.7), generator)
        photo, mask = _place(photos[chosen], size, generator)
        whole = mask.sum((1, 2, 3), keepdim=True)
        mask &= owner == 0
        drawn = (slot < count) & (mask.sum((1, 2, 3), keepdim=True) >= (VISIBLE * whole).clamp_min(1))
        mask &= drawn
        canvas = torch.where(mask, photo * _uniform((0.75, 1.0), generator), canvas)
        owner = torch.where(mask, slot + 1, owner)
        labels[:, slot] = torch.where(drawn.flatten(), classes[chosen] + 1, 0)
    noise = 0.02 * torch.randn(canvas.shape, generator=generator)
    images = ((canvas + noise).clamp(0, 1) * 255).round().to(torch.uint8)
    named = F.pad(labels, (1, 0)).gather(1, owner.flatten(1)).view(CHUNK, SIZE, SIZE)
    boxes = torch.stack([_boxes(owner[:, 0] == slot + 1) for slot in range(SLOTS)], 1)
    return images, named, boxes, labels


def _background(photos: Tensor, generator: torch.Generator) -> Tensor:
    """Smooth grey with pieces of photographs in it, `(CHUNK, 1, SIZE, SIZE)` in 0 to 1."""
    coarse = 0.5 * torch.rand(CHUNK, 1, 5, 5, generator=generator)
    canvas = F.interpolate(coarse, (SIZE, SIZE), mode="bilinear", align_corners=True)
    for _ in range(10):
        chosen = torch.randint(len(photos), (CHUNK,), generator=generator)
        piece = photos[chosen, :, 9:19, 9:19]
        shown, inside = _place(piece, _uniform((8, 30), generator), generator)
        strength = _uniform((0.2, 0.5), generator) * inside
        canvas = canvas + strength * (shown - canvas)
    return canvas


def _place(photos: Tensor, size: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Photographs and their foreground on empty canvases, `size (b, 1, 1, 1)` pixels wide, anywhere, half of them
    mirrored."""
    batch, _, height, width = photos.shape
    size = size.view(batch)
    left, top = torch.rand(2, batch, generator=generator) * (SIZE - size)
    mirror = torch.rand(batch, 1, 1, 1, generator=generator) < 0.5
    both = torch.cat([photos / 255, foreground(photos).float()], 1)
    both = torch.where(mirror, both.flip(-1), both)
    placed = _interpolation(top, size, height)[:, None] @ both @ _interpolation(left, size, width)[:, None].mT
    return placed[:, :1], placed[:, 1:] > 0.5


def _interpolation(start: Tensor, size: Tensor, entries: int) -> Tensor:
    """Linear interpolation as a matrix `(b, SIZE, entries)`: `entries` values on `size` pixels from `start` on, zeros
    around them."""
    pixel = torch.arange(SIZE) + 0.5
    source = (pixel - start[:, None]) * entries / size[:, None] - 0.5
    return (1 - (source[..., None] - torch.arange(entries)).abs()).clamp_min(0)


def _boxes(mask: Tensor) -> Tensor:
    """The box `(b, 4)` around each mask `(b, H, W)`; zeros where it is empty."""
    sides = []
    for dim in (1, 2):  # columns, then rows
        shown = mask.any(dim)
        first = shown.to(torch.uint8).argmax(1)
        last = shown.shape[1] - shown.flip(1).to(torch.uint8).argmax(1)
        sides.append((first, torch.where(shown.any(1), last, 0)))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], 1).float()


def _uniform(bounds: tuple[float, float], generator: torch.Generator) -> Tensor:
    low, high = bounds
    return low + (high - low) * torch.rand(CHUNK, 1, 1, 1, generator=generator)

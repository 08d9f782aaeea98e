"""COCO detection (Lin et al., ECCV 2014): 5,000 validation images, 80 categories under their official numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.data.samples import DenseData, Sample, read_image

ANNOTATIONS = Path("annotations") / "instances_val2017.json"
LAYOUT = "val2017/*.jpg and annotations/instances_val2017.json"
IMAGE_KEYS = ("id", "file_name", "height", "width")
SLACK = 2.0  # pixels that a box may reach out of its image: polygons were drawn by hand


@dataclass(frozen=True)
class COCO:
    """Samples in the order of the annotation file; objects by image number as they are in the file."""

    folder: Path
    images: list[dict[str, Any]]
    objects: dict[int, list[dict[str, Any]]]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        facts = self.images[index]
        path = self.folder / facts["file_name"]
        image = read_image(path)
        if image.shape[1:] != (facts["height"], facts["width"]):
            height, width = image.shape[1:]
            raise InvalidValueError(
                f"{path} is {width} x {height} pixels, but {ANNOTATIONS.name} says {facts['width']} x {facts['height']}"
            )
        objects = self.objects[facts["id"]]
        boxes = torch.tensor([one["bbox"] for one in objects], dtype=torch.float64).view(-1, 4)
        target = {
            "boxes": torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1),
            "labels": torch.tensor([one["category_id"] for one in objects], dtype=torch.long),
            "iscrowd": torch.tensor([one.get("iscrowd", 0) for one in objects], dtype=torch.long),
        }
        return {"image": image, "target": target, "path": path}


def load(folder: Path) -> DenseData:
    """The validation images in `folder`.

    Raises: ValueError if `folder` has another layout, or the annotation file is damaged.
    """
    path = folder / ANNOTATIONS
    if not path.is_file() or not (folder / "val2017").is_dir():
        raise InvalidValueError(f"{folder} is not laid out as COCO; expected {LAYOUT}")
    try:
        content = json.loads(path.read_bytes())
        images = {facts["id"]: {key: facts[key] for key in IMAGE_KEYS} for facts in content["images"]}
        classes = {category["id"]: category["name"] for category in content["categories"]}
        objects: dict[int, list[dict[str, Any]]] = {number: [] for number in images}
        for one in content["annotations"]:
            check_object(one, images, classes, path)
            objects[one["image_id"]].append(one)
        samples = COCO(folder / "val2017", list(images.values()), objects)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InvalidValueError):
            raise
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise InvalidValueError(f"{path} is not an annotation file of COCO: {what}") from None
    if not images:
        raise InvalidValueError(f"{path} names no images; expected {LAYOUT}")
    return DenseData("coco", "detection", samples, classes)


def check_object(one: dict[str, Any], images: dict[int, Any], classes: dict[int, str], path: Path) -> None:
    """Raise if an object of the file at `path` belongs to no image or category, or has an impossible box."""
    what = f"{path}: annotation {one['id']}"
    if one["image_id"] not in images:
        raise InvalidValueError(f"{what} is of image {one['image_id']}, which the file does not name")
    if one["category_id"] not in classes:
        raise InvalidValueError(f"{what} has category {one['category_id']}, which the file does not name")
    facts = images[one["image_id"]]
    left, top, width, height = one["bbox"]
    right, bottom = facts["width"] + SLACK, facts["height"] + SLACK
    sized = width >= 0 and height >= 0
    inside = left >= -SLACK and top >= -SLACK and left + width <= right and top + height <= bottom
    if not sized or not inside:
        where = "has a negative size" if not sized else f"is outside {facts['file_name']}"
        raise InvalidValueError(
            f"{what} has the box {one['bbox']} (left, top, width, height), which {where} "
            f"({facts['width']} x {facts['height']} pixels)"
        )

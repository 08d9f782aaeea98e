"""Cityscapes (Cordts et al., CVPR 2016): 500 validation images, the 19 classes that are evaluated."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tokenreduce.lab.data.samples import IGNORED, UNKNOWN, ClassMaps, DenseData, check_pairs, find_files

# The label of the files and the name of each class, in the order of the 19 train ids.
CLASSES = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
LABELS = 34
LAYOUT = "leftImg8bit/val/CITY/*_leftImg8bit.png beside gtFine/val/CITY/*_gtFine_labelIds.png"


def train_ids() -> Tensor:
    """`(256,)`: the class of each label of the files, 255 for those that are not evaluated. The label -1 of number
    plates is 255 in files of 8 bits."""
    table = torch.full((256,), UNKNOWN)
    table[:LABELS] = table[255] = IGNORED
    table[list(CLASSES)] = torch.arange(len(CLASSES))
    return table


def load(folder: Path) -> DenseData:
    """The validation images in `folder`.

    Raises: ValueError if `folder` has another layout.
    """
    images = find_files(folder / "leftImg8bit" / "val", "*/*_leftImg8bit.png", LAYOUT)
    stems = [path.name.removesuffix("_leftImg8bit.png") for path in images]
    annotations = [
        folder / "gtFine" / "val" / path.parent.name / f"{stem}_gtFine_labelIds.png"
        for path, stem in zip(images, stems, strict=True)
    ]
    check_pairs(images, annotations)
    samples = ClassMaps(images, annotations, train_ids(), f"Cityscapes has 0 to {LABELS - 1}, and 255 for -1")
    return DenseData("cityscapes", "segmentation", samples, dict(enumerate(CLASSES.values())))

"""ADE20K as the scene parsing challenge ships it (Zhou et al., CVPR 2017): 2,000 validation images, 150 classes."""

from __future__ import annotations

from pathlib import Path

import torch

from tokenreduce.lab.data.samples import IGNORED, ClassMaps, DenseData, check_pairs, find_files

CLASSES = 150
LAYOUT = "ADEChallengeData2016 with images/validation/*.jpg and annotations/validation/*.png"


def load(folder: Path) -> DenseData:
    """The validation images in `folder`, or in its subfolder ADEChallengeData2016.

    Raises: ValueError if `folder` has another layout.
    """
    inner = folder / "ADEChallengeData2016"
    root = inner if inner.is_dir() else folder
    images = find_files(root / "images" / "validation", "*.jpg", LAYOUT)
    annotations = [root / "annotations" / "validation" / f"{path.stem}.png" for path in images]
    check_pairs(images, annotations)
    classes = torch.tensor([IGNORED, *range(CLASSES)])  # the files say 0 for what is of no class
    samples = ClassMaps(images, annotations, classes, f"ADE20K has 0 (other) to {CLASSES}")
    return DenseData("ade20k", "segmentation", samples, dict.fromkeys(range(CLASSES), ""))

"""ADE20K as the scene parsing challenge ships it (Zhou et al., CVPR 2017): 2,000 validation images, 150 classes."""

from __future__ import annotations

from pathlib import Path

import torch

from tokenreduce.lab.data.samples import IGNORED, UNKNOWN, ClassMaps, DenseData, check_pairs, find_files

CLASSES = 150
LAYOUT = "ADEChallengeData2016 with images/validation/*.jpg and annotations/validation/*.png"


def load(folder: Path, reduced: bool = False) -> DenseData:
    """The validation images in `folder`, or in its subfolder ADEChallengeData2016.

    `reduced` says that the files hold 0 to 149, and 255 for what is of no class, as some libraries rewrite them.

    Raises: ValueError if `folder` has another layout.
    """
    inner = folder / "ADEChallengeData2016"
    root = inner if inner.is_dir() else folder
    images = find_files(root / "images" / "validation", "*", LAYOUT)
    annotations = [root / "annotations" / "validation" / f"{path.stem}.png" for path in images]
    check_pairs(images, annotations)
    classes = torch.full((256,), UNKNOWN)
    if reduced:
        classes[:CLASSES], classes[255] = torch.arange(CLASSES), IGNORED
        known = f"reduced labels are 0 to {CLASSES - 1} and 255; leave --reduced-labels out for the official files"
    else:
        classes[1 : CLASSES + 1], classes[0] = torch.arange(CLASSES), IGNORED
        known = f"ADE20K has 0 (other) to {CLASSES}; give --reduced-labels where files hold 0 to {CLASSES - 1} and 255"
    samples = ClassMaps(images, annotations, classes, known)
    return DenseData("ade20k", "segmentation", samples, dict.fromkeys(range(CLASSES), ""))

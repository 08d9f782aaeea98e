"""ADE20K as the scene parsing challenge ships it (Zhou et al., CVPR 2017): 2,000 validation images, 150 classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.data.samples import IGNORED, DenseData, Sample, check_pairs, find_files, read_image, read_map

CLASSES = 150
LAYOUT = "ADEChallengeData2016 with images/validation/*.jpg and annotations/validation/*.png"


@dataclass(frozen=True)
class ADE20K:
    """Samples of the validation split; files say 0 for other and 1 to 150, targets 255 and 0 to 149."""

    images: list[Path]
    annotations: list[Path]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        path, truth = self.images[index], self.annotations[index]
        image = read_image(path)
        labels = torch.from_numpy(read_map(truth, image, path)).long()
        if labels.max() > CLASSES:
            raise InvalidValueError(f"{truth} has label {int(labels.max())}; ADE20K has 0 (other) to {CLASSES}")
        return {"image": image, "target": torch.where(labels == 0, IGNORED, labels - 1), "path": path}


def load(folder: Path) -> DenseData:
    """The validation images in `folder`, or in its subfolder ADEChallengeData2016.

    Raises: ValueError if `folder` has another layout.
    """
    inner = folder / "ADEChallengeData2016"
    root = inner if inner.is_dir() else folder
    images = find_files(root / "images" / "validation", "*.jpg", LAYOUT)
    annotations = [root / "annotations" / "validation" / f"{path.stem}.png" for path in images]
    check_pairs(images, annotations)
    return DenseData("ade20k", "segmentation", ADE20K(images, annotations), dict.fromkeys(range(CLASSES), ""))

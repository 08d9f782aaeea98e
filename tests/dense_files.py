"""Files of dense data sets as a test writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from tokenreduce.lab.data import nyuv2

RNG = np.random.default_rng(0)


def write(path: Path, values: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values)).save(path)
    return path


def pixels(height: int, width: int) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def labelled(root: Path, images: np.ndarray, depths: np.ndarray) -> None:
    with h5py.File(root / nyuv2.MAT, "w") as file:
        file["images"], file["depths"] = images, depths

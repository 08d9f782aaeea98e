"""Fixtures: a clock for tests of speed; dense data sets in their official folder layouts, made small."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dense_files import RNG, labelled, pixels, write
from scipy.io import savemat
from timed import clock  # noqa: F401  a fixture

from tokenreduce.lab.data import nyuv2


@pytest.fixture
def ade(tmp_path: Path) -> Path:
    root = tmp_path / "ADEChallengeData2016"
    for i in range(3):
        write(root / "images" / "validation" / f"ADE_val_{i}.jpg", pixels(6, 8 + i))
        labels = np.arange(6 * (8 + i), dtype=np.uint8).reshape(6, 8 + i)
        labels[5, 7] = 150
        write(root / "annotations" / "validation" / f"ADE_val_{i}.png", labels)
    return tmp_path


@pytest.fixture
def streets(tmp_path: Path) -> Path:
    for city, i in (("ulm", 0), ("bonn", 0), ("bonn", 1)):
        stem = f"{city}_{i:06}_000019"
        write(tmp_path / "leftImg8bit" / "val" / city / f"{stem}_leftImg8bit.png", pixels(4, 9))
        labels = np.arange(36, dtype=np.uint8).reshape(4, 9) % 34
        write(tmp_path / "gtFine" / "val" / city / f"{stem}_gtFine_labelIds.png", labels)
    return tmp_path


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    for number, (height, width) in {7: (30, 40), 3: (20, 25)}.items():
        write(tmp_path / "val2017" / f"{number:012}.jpg", pixels(height, width))
    content = {
        "images": [
            {"id": 7, "file_name": "000000000007.jpg", "height": 30, "width": 40},
            {"id": 3, "file_name": "000000000003.jpg", "height": 20, "width": 25},
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}],
        "annotations": [
            {"id": 11, "image_id": 7, "category_id": 90, "bbox": [1.5, 2, 10, 4.25], "iscrowd": 0, "area": 42.5},
            {"id": 12, "image_id": 7, "category_id": 1, "bbox": [30, 20, 10.5, 10], "iscrowd": 1, "area": 100},
        ],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return tmp_path


@pytest.fixture
def rooms(tmp_path: Path) -> Path:
    depths = RNG.uniform(0.5, 9, (5, 8, 6)).astype(np.float32)
    labelled(tmp_path, RNG.integers(0, 256, (5, 3, 8, 6), dtype=np.uint8), depths)
    savemat(tmp_path / nyuv2.SPLITS, {"testNdxs": np.array([[2], [5]]), "trainNdxs": np.array([[1], [3], [4]])})
    return tmp_path


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    for rgb, depth in (("rgb_00045.jpg", "sync_depth_00045.png"), ("7.png", "7.png")):
        write(tmp_path / "rgb" / rgb, pixels(5, 6))
        write(tmp_path / "depth" / depth, np.arange(30, dtype=np.uint16).reshape(5, 6) * 250)
    return tmp_path

"""Sentences about files of dense data sets that are not as they should be."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from dense_files import labelled, write

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.data import coco, nyuv2
from tokenreduce.lab.quality.named import load_dense

ADE_TRUTH = "ADEChallengeData2016/annotations/validation/ADE_val_1.png"
STREET_TRUTH = "gtFine/val/bonn/bonn_000001_000019_gtFine_labelIds.png"


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def relabelled(value: int, *shape: int) -> Callable[[Path], Any]:
    return lambda path: write(path, np.full(shape, value, np.uint8))


@pytest.mark.parametrize(
    ("fixture", "name", "task", "file", "change", "sentence"),
    [
        ("ade", "ade20k", "segmentation", ADE_TRUTH, Path.unlink, "ADE_val_1.jpg has no annotation: there is no"),
        ("ade", "ade20k", "segmentation", ADE_TRUTH, damaged, "ADE_val_1.png is not an image that Pillow can read"),
        ("ade", "ade20k", "segmentation", ADE_TRUTH, relabelled(1, 6, 8), "is 8 x 6 pixels, but its image"),
        (
            "ade",
            "ade20k",
            "segmentation",
            ADE_TRUTH,
            relabelled(151, 6, 9),
            "has label 151; ADE20K has 0 (other) to 150",
        ),
        ("ade", "ade20k", "segmentation", ADE_TRUTH, relabelled(1, 6, 9, 3), "has 3 channels; an annotation has one"),
        ("streets", "cityscapes", "segmentation", STREET_TRUTH, Path.unlink, "has no annotation: there is no"),
        (
            "streets",
            "cityscapes",
            "segmentation",
            STREET_TRUTH,
            relabelled(34, 4, 9),
            "has label 34; Cityscapes has 0 to 33",
        ),
        ("boxes", "coco", "detection", "val2017/000000000003.jpg", Path.unlink, "000000000003.jpg does not exist"),
        (
            "boxes",
            "coco",
            "detection",
            "val2017/000000000003.jpg",
            relabelled(0, 20, 20),
            "is 20 x 20 pixels, but instances",
        ),
        (
            "boxes",
            "coco",
            "detection",
            "annotations/instances_val2017.json",
            damaged,
            "is not an annotation file of COCO",
        ),
        ("rooms", "nyuv2", "depth", nyuv2.MAT, damaged, "is not an HDF5 file"),
        ("rooms", "nyuv2", "depth", nyuv2.SPLITS, damaged, "holds no test split (testNdxs)"),
        ("frames", "nyuv2", "depth", "depth/7.png", Path.unlink, "has no annotation: there is no"),
        ("frames", "nyuv2", "depth", "depth/7.png", relabelled(1, 5, 6), "has 8 bits a pixel; depths are millimetres"),
    ],
)
def test_bad_files_are_named(
    fixture: str, name: str, task: str, file: str, change: Any, sentence: str, request: pytest.FixtureRequest
) -> None:
    root = request.getfixturevalue(fixture)
    change(root / file)
    with pytest.raises(InvalidValueError, match=re.escape(sentence)) as caught:
        for index in range(3):
            load_dense(name, task, root).samples[index]
    assert (root / file).stem.split(".")[0] in str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"bbox": [1, 2, -3, 4]},
            "annotation 11 has the box [1, 2, -3, 4] (left, top, width, height), which has a negative",
        ),
        ({"bbox": [1, 2, 45, 4]}, "which is outside 000000000007.jpg (40 x 30 pixels)"),
        ({"bbox": [-9, 2, 12, 4]}, "which is outside 000000000007.jpg (40 x 30 pixels)"),
        ({"bbox": [1, 2, 3]}, "is not an annotation file of COCO: not enough values"),
        ({"image_id": 8}, "annotation 11 is of image 8, which the file does not name"),
        ({"category_id": 4}, "annotation 11 has category 4, which the file does not name"),
    ],
)
def test_bad_boxes_are_named(boxes: Path, change: dict[str, Any], sentence: str) -> None:
    path = boxes / coco.ANNOTATIONS
    content = json.loads(path.read_text())
    content["annotations"][0] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(InvalidValueError, match=re.escape(sentence)) as caught:
        coco.load(boxes)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_parts_that_an_annotation_file_lacks(boxes: Path, key: str) -> None:
    path = boxes / coco.ANNOTATIONS
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))
    with pytest.raises(InvalidValueError, match=f"is not an annotation file of COCO: '{key}' is missing"):
        coco.load(boxes)


def test_bad_depths_are_named(rooms: Path) -> None:
    images = np.zeros((5, 3, 8, 6), np.uint8)
    for depths, sentence in (
        (np.full((5, 8, 6), -1, np.float32), "image 2 has depths that are negative or not finite"),
        (np.full((5, 8, 6), np.nan, np.float32), "image 2 has depths that are negative or not finite"),
        (np.ones((5, 6, 6), np.float32), "image 2 is (6, 8), its depth (6, 6)"),
        (np.ones((4, 8, 6), np.float32), "expected (n, 3, width, height) and (n, width, height)"),
    ):
        labelled(rooms, images, depths)
        with pytest.raises(InvalidValueError, match=re.escape(sentence)):
            nyuv2.load(rooms).samples[0]
    labelled(rooms, images[:3], np.ones((3, 8, 6), np.float32))
    with pytest.raises(InvalidValueError, match=r"splits\.mat names images up to 5, .* has 3"):
        nyuv2.load(rooms)


def test_missing_libraries_are_named(rooms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("scipy", "h5py"):
        monkeypatch.setattr(
            nyuv2, "find_spec", lambda name, hidden=library: None if name == hidden else find_spec(name)
        )
        with pytest.raises(InvalidValueError, match=rf"needs {library}, which the extra 'nyuv2' brings"):
            nyuv2.load(rooms)


@pytest.mark.parametrize("content", [b"", b"text", None])
@pytest.mark.parametrize(
    ("fixture", "name", "task", "file"),
    [
        ("ade", "ade20k", "segmentation", "ADEChallengeData2016/images"),
        ("ade", "ade20k", "segmentation", "ADEChallengeData2016/annotations"),
        ("streets", "cityscapes", "segmentation", "leftImg8bit"),
        ("streets", "cityscapes", "segmentation", "gtFine"),
        ("boxes", "coco", "detection", "val2017"),
        ("frames", "nyuv2", "depth", "rgb"),
        ("frames", "nyuv2", "depth", "depth"),
    ],
)
def test_images_that_cannot_be_read_are_left_out_and_named(
    fixture: str, name: str, task: str, file: str, content: bytes | None, request: pytest.FixtureRequest
) -> None:
    root = request.getfixturevalue(fixture)
    whole = load_dense(name, task, root)
    samples = whole.read(range(len(whole)))
    path = sorted(path for path in (root / file).rglob("*.*") if path.suffix in (".jpg", ".png"))[0]
    path.write_bytes(path.read_bytes()[:40] if content is None else content)
    data = load_dense(name, task, root)
    found = data.read(range(len(data)))
    assert len(data.left_out) == 1 and str(path) in next(iter(data.left_out))
    assert len(found) == len(samples) - 1
    left = [sample for sample in samples if sample["path"] in [one["path"] for one in found]]
    for one, expected in zip(found, left, strict=True):
        assert torch.equal(one["image"], expected["image"])
    assert data.read(range(len(data))) and len(data.left_out) == 1, "an image is counted once, however often it is read"


def test_a_file_of_all_images_with_a_damaged_part(rooms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_dense("nyuv2", "depth", rooms)

    def broken(self: Any, key: Any) -> Any:
        raise OSError("Can't read data (inflate failed)")

    monkeypatch.setattr(h5py.Dataset, "__getitem__", broken)
    assert data.read([0]) == [] and "image" in next(iter(data.left_out))
    with pytest.raises(InvalidValueError, match=f"none of the {len(data)} images can be read; the first: "):
        data.first()

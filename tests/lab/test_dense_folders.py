"""Official folder layouts, made small by the test, and sentences about files that are not as they should be."""

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
from PIL import Image
from scipy.io import savemat

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.data import ade20k, cityscapes, coco, nyuv2
from tokenreduce.lab.quality.named import load_dense

RNG = np.random.default_rng(0)


def write(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def pixels(height: int, width: int) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


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


def labelled(root: Path, images: np.ndarray, depths: np.ndarray) -> None:
    with h5py.File(root / nyuv2.MAT, "w") as file:
        file["images"], file["depths"] = images, depths


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


def test_ade20k(ade: Path) -> None:
    data = load_dense("ade20k", "segmentation", ade)
    assert len(data) == 3 and len(data.classes) == 150
    assert [data.samples[i]["path"].name for i in range(3)] == ["ADE_val_0.jpg", "ADE_val_1.jpg", "ADE_val_2.jpg"]
    sample = data.samples[1]
    assert sample["image"].shape == (3, 6, 9) and sample["image"].dtype == torch.uint8
    target = sample["target"]
    assert target.dtype == torch.int64 and target[0, :4].tolist() == [255, 0, 1, 2] and target[5, 7] == 149
    assert len(ade20k.load(ade / "ADEChallengeData2016")) == 3, "the inner folder works as well"


def test_images_are_read_in_their_colours(tmp_path: Path) -> None:
    shown = pixels(4, 9)
    write(tmp_path / "leftImg8bit" / "val" / "ulm" / "ulm_0_leftImg8bit.png", shown)
    write(tmp_path / "gtFine" / "val" / "ulm" / "ulm_0_gtFine_labelIds.png", np.zeros((4, 9), np.uint8))
    image = cityscapes.load(tmp_path).samples[0]["image"]
    assert torch.equal(image, torch.from_numpy(shown).permute(2, 0, 1))


def test_cityscapes(streets: Path) -> None:
    data = load_dense("cityscapes", "segmentation", streets)
    assert [data.samples[i]["path"].parent.name for i in range(3)] == ["bonn", "bonn", "ulm"]
    assert len(data.classes) == 19 and data.classes[0] == "road" and data.classes[18] == "bicycle"
    target = data.samples[0]["target"].flatten()[:34]
    known = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert target[known].tolist() == list(range(19))
    assert all(target[i] == 255 for i in range(34) if i not in known)


def test_coco(boxes: Path) -> None:
    data = load_dense("coco", "detection", boxes)
    assert data.classes == {1: "person", 90: "toothbrush"}
    first, second = data.samples[0], data.samples[1]
    assert first["image"].shape == (3, 30, 40) and second["image"].shape == (3, 20, 25)
    assert first["target"]["boxes"].tolist() == [[1.5, 2, 11.5, 6.25], [30, 20, 40.5, 30]]
    assert first["target"]["labels"].tolist() == [90, 1] and first["target"]["iscrowd"].tolist() == [0, 1]
    assert second["target"]["boxes"].shape == (0, 4) and second["target"]["labels"].shape == (0,)


def test_nyuv2_labelled_file(rooms: Path) -> None:
    data = load_dense("nyuv2", "depth", rooms)
    assert len(data) == 2 and data.farthest == 10 and data.name == "nyuv2"
    with h5py.File(rooms / nyuv2.MAT) as file:
        images, depths = file["images"][:], file["depths"][:]
    sample = data.samples[1]
    assert sample["image"].shape == (3, 6, 8) and sample["target"].shape == (6, 8)
    assert sample["image"][2, 4, 7] == images[4, 2, 7, 4] and sample["target"][4, 7] == depths[4, 7, 4]
    assert str(sample["path"]).endswith("nyu_depth_v2_labeled.mat: image 5")
    (rooms / nyuv2.SPLITS).unlink()
    data = load_dense("nyuv2", "depth", rooms)
    assert len(data) == 5 and data.name == f"nyuv2 (training images too: no splits.mat beside {nyuv2.MAT})"


def test_nyuv2_folders(frames: Path) -> None:
    data = nyuv2.load(frames)
    assert [sample["path"].name for sample in data.samples] == ["7.png", "rgb_00045.jpg"]
    assert data.samples[1]["target"].dtype == torch.float32
    assert data.samples[1]["target"][0].tolist() == [0, 0.25, 0.5, 0.75, 1.0, 1.25]


def test_nyuv2_frames_of_full_size_have_a_window(tmp_path: Path) -> None:
    write(tmp_path / "rgb" / "0.png", pixels(480, 640))
    write(tmp_path / "depth" / "0.png", np.full((480, 640), 2000, np.uint16))
    known = nyuv2.load(tmp_path).samples[0]["target"] > 0
    rows, columns = known.any(1).nonzero().flatten(), known.any(0).nonzero().flatten()
    assert (int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])) == (45, 470, 41, 600)
    assert int(known.sum()) == 426 * 560


def test_a_limit_is_spread_over_the_images(streets: Path) -> None:
    data = load_dense("cityscapes", "segmentation", streets, limit=2)
    assert [sample["path"].parent.name for sample in data.samples] == ["bonn", "bonn"] and len(data) == 2
    with pytest.raises(InvalidValueError, match="the number of images is 0; it must be 1 or more"):
        load_dense("cityscapes", "segmentation", streets, limit=0)


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


@pytest.mark.parametrize(
    ("name", "task", "sentence"),
    [
        ("ade20k", "segmentation", "ADEChallengeData2016 with images/validation"),
        ("cityscapes", "segmentation", "expected leftImg8bit/val/CITY"),
        ("coco", "detection", "is not laid out as COCO; expected val2017/*.jpg and annotations"),
        ("nyuv2", "depth", "is not laid out as NYUv2; expected nyu_depth_v2_labeled.mat"),
    ],
)
def test_other_layouts_are_refused(name: str, task: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=re.escape(sentence)):
        load_dense(name, task, tmp_path)
    with pytest.raises(
        InvalidValueError, match=f"{name} does not ship with the library; give --data-dir, a folder that"
    ):
        load_dense(name, task)


def test_data_of_another_task_are_refused(ade: Path) -> None:
    with pytest.raises(InvalidValueError, match=r"unknown data for detection 'ade20k'; valid: .*coco"):
        load_dense("ade20k", "detection", ade)
    with pytest.raises(InvalidValueError, match="unknown dense task 'pose'; valid: depth, detection, segmentation"):
        load_dense("ade20k", "pose", ade)

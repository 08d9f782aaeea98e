"""Official folder layouts as `DenseData`, and what other folders and names are told."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from dense_files import pixels, write
from PIL import Image

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.data import ade20k, cityscapes, nyuv2
from tokenreduce.lab.data.samples import read_image
from tokenreduce.lab.quality.named import load_dense


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


@pytest.mark.parametrize("name", ["ade20k", "cityscapes", "nyuv2"])
def test_what_systems_leave_beside_images_is_ignored(name: str, request: pytest.FixtureRequest) -> None:
    fixture = {"ade20k": "ade", "cityscapes": "streets", "nyuv2": "frames"}[name]
    root: Path = request.getfixturevalue(fixture)
    task = "depth" if name == "nyuv2" else "segmentation"
    before = [sample["path"] for sample in load_dense(name, task, root).samples]
    folders = {path.parent for path in root.rglob("*") if path.is_file()}
    for folder in folders:
        own = next(path for path in folder.iterdir())
        for litter in (".DS_Store", "Thumbs.db", "desktop.ini", f"._{own.name}"):
            (folder / litter).write_bytes(b"litter")
    assert [sample["path"] for sample in load_dense(name, task, root).samples] == before


@pytest.mark.parametrize("ending", [".JPG", ".jpeg", ".png", ".webp"])
def test_ade20k_reads_images_of_every_ending(ending: str, ade: Path) -> None:
    folder = ade / "ADEChallengeData2016" / "images" / "validation"
    write(folder / f"ADE_val_0{ending}", Image.open(folder / "ADE_val_0.jpg"))
    (folder / "ADE_val_0.jpg").unlink()
    assert len(load_dense("ade20k", "segmentation", ade)) == 3


def test_labels_of_cityscapes_plates_and_of_reduced_ade20k(streets: Path, ade: Path) -> None:
    plates = np.full((4, 9), 255, np.uint8)
    plates[0, :2] = 7, 33
    truth = next((streets / "gtFine").rglob("bonn_000000*"))
    write(truth, plates)
    target = load_dense("cityscapes", "segmentation", streets).samples[0]["target"]
    assert target[0, :2].tolist() == [0, 18] and (target.flatten()[2:] == 255).all()
    write(truth, np.full((4, 9), 34, np.uint8))
    with pytest.raises(InvalidValueError, match="has label 34; Cityscapes has 0 to 33, and 255"):
        load_dense("cityscapes", "segmentation", streets).samples[0]

    labels = np.array([[0, 149, 255, 3, 4, 5, 6, 7]] * 6, np.uint8)
    write(ade / "ADEChallengeData2016" / "annotations" / "validation" / "ADE_val_0.png", labels)
    with pytest.raises(InvalidValueError, match=r"has label 255; ADE20K has 0 \(other\) to 150; give --reduced-labels"):
        load_dense("ade20k", "segmentation", ade).samples[0]
    reduced = load_dense("ade20k", "segmentation", ade, reduced=True)
    assert torch.equal(reduced.samples[0]["target"], torch.from_numpy(labels).long())
    with pytest.raises(InvalidValueError, match="has label 150; reduced labels are 0 to 149"):
        reduced.samples[1]
    with pytest.raises(InvalidValueError, match="--reduced-labels is for ade20k, not for cityscapes"):
        load_dense("cityscapes", "segmentation", streets, reduced=True)


def test_dense_images_have_wide_grey_values_scaled(tmp_path: Path) -> None:
    write(tmp_path / "a.png", np.array([[0, 257, 65535]], np.uint16))
    assert read_image(tmp_path / "a.png")[0].tolist() == [[0, 1, 255]]

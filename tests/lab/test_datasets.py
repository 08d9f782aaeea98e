"""Data for `eval`: folders as timm reads them, Fashion-MNIST as it ships, and sentences for what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_dataset, create_loader, resolve_model_data_config

from tokenreduce.lab.data import fashion_mnist
from tokenreduce.lab.data import folders as datasets
from tokenreduce.lab.shipped import fashion_vit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes with photographs of odd sizes, in train and val."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 4), ("val", 3)):
        for name in ("cat", "dog", "owl"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(0, 256, (40 + 5 * i, 60, 3), dtype=torch.uint8, generator=generator)
                Image.fromarray(pixels.numpy()).save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def deit() -> Any:
    return timm.create_model("deit_tiny_patch16_224", img_size=32, num_classes=3).eval()


def test_folders_are_read_as_timm_reads_them(folder: Path) -> None:
    model = deit()
    data = datasets.load_data(str(folder), model)
    assert data.class_names == ("cat", "dog", "owl") and len(data) == 9
    config = resolve_model_data_config(model)
    theirs = create_loader(
        create_dataset("", str(folder), split="validation"),
        batch_size=9,
        use_prefetcher=False,
        num_workers=0,
        **config,
    )
    for mine, expected in zip(data.batches(9), theirs, strict=True):
        torch.testing.assert_close(mine[0], expected[0])
        assert torch.equal(mine[1], expected[1])


def test_a_limit_is_spread_over_the_classes(folder: Path) -> None:
    data = datasets.load_data(str(folder), deit(), limit=3)
    assert [label for _, label in data.images] == [0, 1, 2]


def test_gallery_is_the_training_split(folder: Path) -> None:
    model = deit()
    data = datasets.load_data(str(folder), model)
    gallery = datasets.load_gallery(data, model, data_dir=None, gallery=None, limit=None)
    assert len(gallery) == 12
    other = datasets.load_gallery(data, model, data_dir=None, gallery=folder / "train", limit=6)
    assert len(other) == 6 and other.class_names == data.class_names


def test_tested_images_are_never_the_gallery(folder: Path) -> None:
    model = deit()
    data = datasets.load_data(str(folder / "val"), model)
    with pytest.raises(ValueError, match=r"no folder 'train'.*give --gallery DIR"):
        datasets.load_gallery(data, model, data_dir=None, gallery=None, limit=None)
    (folder / "train" / "owl").rename(folder / "train" / "emu")
    with pytest.raises(ValueError, match="must have the same names"):
        datasets.load_gallery(data, model, data_dir=None, gallery=folder / "train", limit=None)


def test_wrong_data_gets_a_sentence(folder: Path, tmp_path: Path) -> None:
    model = deit()
    with pytest.raises(ValueError, match=r"no data 'nowhere'; valid: fashion-mnist, imagenet"):
        datasets.load_data("nowhere", model)
    with pytest.raises(ValueError, match="give --data-dir"):
        datasets.load_data("imagenet", model)
    with pytest.raises(ValueError, match="has 3 class folders, ImageNet-1k has 1000"):
        datasets.load_data("imagenet", model, data_dir=folder)
    (folder / "val").rename(folder / "later")
    with pytest.raises(ValueError, match=r"has the folder 'train' but none for the test images"):
        datasets.load_data(str(folder), model)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        datasets.load_data(str(tmp_path / "empty"), model)
    with pytest.raises(ValueError, match="number of images is 0"):
        datasets.thin(range(5), 0)


def test_fashion_mnist_ships_and_fits_the_shipped_model_only() -> None:
    model = fashion_vit.build()
    data = datasets.load_data("fashion-mnist", model, limit=20)
    images, labels = next(iter(data.batches(20)))
    raw, _ = fashion_mnist.load("test", fashion_mnist.SUBSET)
    assert len(raw) == 2000
    torch.testing.assert_close(images, fashion_mnist.normalise(raw[::100]))
    assert labels.bincount(minlength=10).sum() == 20
    datasets.check_labels(data, model)

    stranger = timm.create_model("deit_tiny_patch16_224").eval()
    foreign = datasets.load_data("fashion-mnist", stranger, limit=2)
    assert foreign.images[0][0].shape == (3, 224, 224)
    with pytest.raises(ValueError, match=r"has 1000 classes, fashion-mnist has 10: .* --head knn"):
        datasets.check_labels(foreign, stranger)

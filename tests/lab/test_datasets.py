"""Data for `eval`: folders as timm reads them, Fashion-MNIST as it ships, and sentences for what does not fit."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_dataset, create_loader, resolve_model_data_config

from tokenreduce.lab.data import fashion_mnist
from tokenreduce.lab.data import folders as datasets
from tokenreduce.lab.data.unlabelled import load_unlabelled
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


def test_a_gallery_of_tested_images_is_refused(folder: Path, tmp_path: Path) -> None:
    model = deit()
    data = datasets.load_data(str(folder), model, limit=2)
    (tmp_path / "link").symlink_to(folder / "val", target_is_directory=True)
    for gallery in (folder / "val", tmp_path / "link", folder / "val" / ".." / "val"):
        with pytest.raises(ValueError, match=r"9 of the tested images are in the gallery .*, such as .*/0.png"):
            datasets.load_gallery(data, model, data_dir=None, gallery=gallery, limit=3)


def test_imagenet_without_labels_may_be_flat(folder: Path) -> None:
    for path in list((folder / "val").rglob("*.png")):
        path.rename(folder / "val" / f"{path.parent.name}_{path.name}")
    for name in ("cat", "dog", "owl"):
        (folder / "val" / name).rmdir()
    for labels in (False, True):
        data = datasets.load_data("imagenet", deit(), data_dir=folder, labels=labels)
        assert len(data) == 9 and data.class_names == ()


def test_a_folder_of_data_that_is_not_asked_for_is_refused(folder: Path) -> None:
    for name in (str(folder), "photographs"):
        with pytest.raises(TypeError, match=r"--data-dir is where fashion-mnist or imagenet lies; .* leave it out"):
            datasets.load_data(name, deit(), data_dir=folder)
        with pytest.raises(TypeError, match="--data-dir is where fashion-mnist lies"):
            load_unlabelled(name, deit(), 4, data_dir=folder)
    model, root = fashion_vit.build(), folder / "val"
    data = datasets.Data("imagenet", [], ("cat", "dog", "owl"))
    found = datasets.load_gallery(data, model, data_dir=folder / "nowhere", gallery=root, limit=None)
    assert len(found) == 9, "the gallery is a folder of its own"


def test_fashion_mnist_is_never_downloaded_into_a_folder_that_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*given: Any, **more: Any) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", offline)
    with pytest.raises(ValueError, match=r"--data-dir .*typo holds no t10k-images"):
        fashion_mnist.find(tmp_path / "typo")
    assert not (tmp_path / "typo").exists()
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "none")
    monkeypatch.setattr(fashion_mnist, "downloads", lambda: tmp_path / "none")
    with pytest.raises(ValueError, match=r"could not be downloaded to .*\(Error downloading .*\); give --data-dir"):
        fashion_mnist.find()


def test_missing_and_damaged_files_of_fashion_mnist_get_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no .*train-images-idx3-ubyte.gz; .* all four files"):
        fashion_mnist.load("train", fashion_mnist.SUBSET)
    names = [f"t10k-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
    whole = {name: (fashion_mnist.SUBSET / name).read_bytes() for name in names}
    for content in (b"text", b"", whole[names[0]][:999], whole[names[0]][:50] + b"x" * 500, gzip.compress(b"abc")):
        for name in names:
            (tmp_path / name).write_bytes(whole[name])
        (tmp_path / names[0]).write_bytes(content)
        with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte.gz is damaged \(.*\); download it again"):
            fashion_mnist.load("test", tmp_path)
    (tmp_path / names[0]).write_bytes(whole[names[1]])
    with pytest.raises(ValueError, match=r"which do not fit; download the files again"):
        fashion_mnist.load("test", tmp_path)

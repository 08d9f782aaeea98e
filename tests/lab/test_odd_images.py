"""Odd pictures, names, sizes and folders: each is named in a sentence, by every reader alike."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.data import decoding, folders, unlabelled
from tokenreduce.lab.data.asked import load_asked
from tokenreduce.lab.data.class_folders import visible
from tokenreduce.lab.data.decoding import decode
from tokenreduce.lab.data.inputs import image_transform
from tokenreduce.lab.embedding.listing import parts_of
from tokenreduce.lab.pretrained import load_pretrained
from tokenreduce.lab.quality.sharing import image_shards
from tokenreduce.lab.shipped.named import load_model
from tokenreduce.lab.team import ALONE

SIDE = 32


def paint(root: Path) -> Path:
    """Two class folders with an image each."""
    for name, grey in (("noon", 230), ("night", 20)):
        (root / name).mkdir(parents=True)
        Image.new("RGB", (SIDE, SIDE), (grey, grey, grey)).save(root / name / "0.png")
    return root


def tiny() -> Any:
    return timm.create_model("deit_tiny_patch16_224", img_size=32, num_classes=4).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of transformers and its processor in a folder."""
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=SIDE, patch_size=8
    )
    root = tmp_path_factory.mktemp("saved")
    transformers.ViTForImageClassification(config).save_pretrained(root)
    transformers.ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(root)
    return root


def refuses(picture: Image.Image) -> torch.Tensor:
    """A transform that fails for black pictures as code of others fails."""
    if picture.getpixel((0, 0)) == (0, 0, 0):
        raise KeyError("black")
    return torch.zeros(3, 4, 4)


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_that_the_transform_refuses_are_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, workers: int
) -> None:
    root = paint(tmp_path / "data")
    Image.new("RGB", (5, 7)).save(root / "noon" / "black.png")
    monkeypatch.setattr(folders, "image_transform", lambda model, whole=False: refuses)
    data = folders.load_data(str(root), tiny())
    assert [len(images) for images, _ in data.batches(9, workers)] == [2]
    [reason] = data.left_out
    assert "black.png (5 x 7 pixels) does not fit the model's transform: 'black'" in reason
    monkeypatch.setattr(unlabelled, "image_transform", lambda model: refuses)
    assert unlabelled.load_unlabelled(str(root), tiny(), 9).left_out == (reason,)


@pytest.mark.parametrize("kind", [struct.error, TypeError, KeyError, RecursionError])
def test_whatever_pillow_raises_the_image_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: type[Exception]
) -> None:
    def fail(picture: Image.Image) -> None:
        raise kind("odd")

    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    monkeypatch.setattr(decoding.ImageOps, "exif_transpose", fail)
    with pytest.raises(decoding.UnreadableError, match=r"a.png is not an image that Pillow can read \(.*odd"):
        decode(tmp_path / "a.png", upright=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_images_of_several_sizes_get_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, workers: int) -> None:
    root = paint(tmp_path / "data")
    Image.new("RGB", (SIDE, 2 * SIDE)).save(root / "noon" / "tall.png")
    for module in (folders, unlabelled):
        monkeypatch.setattr(module, "image_transform", lambda model, whole=False: as_they_are)
    data = folders.load_data(str(root), tiny())
    sentence = (
        r"^the model's image processor keeps the aspect ratio: it makes \(3, 32, 32\) of one picture and "
        r"\(3, 64, 32\) of another, which no batch can hold; give "
    )
    with pytest.raises(InvalidValueError, match=f"{sentence}--batch-size 1, or"):
        list(data.batches(9, workers))
    with pytest.raises(InvalidValueError, match=f"{sentence}--batch-size 1, or"):
        list(image_shards(data, 9, workers, ALONE, None).read([0]))
    with pytest.raises(InvalidValueError, match=f"{sentence}--image-size N, which scales each picture"):
        unlabelled.load_unlabelled(str(root), tiny(), 9)
    assert len(list(data.batches(1, workers))) == 3


def as_they_are(picture: Image.Image) -> torch.Tensor:
    return torch.zeros(3, picture.height, picture.width)


def test_names_that_sort_alike_have_one_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever the order in which the file system gives them."""
    names = ["01.jpg", "1.jpg", "2.jpg", "Dog.jpg", "dog.jpg"]
    for order in (names, names[::-1]):
        monkeypatch.setattr(Path, "iterdir", lambda path, order=order: (path / name for name in order))
        assert [path.name for path in visible(tmp_path)] == names


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything: NOT TESTED")
def test_folders_that_may_not_be_read_get_a_sentence(tmp_path: Path) -> None:
    check_closed(paint(tmp_path / "data"), lambda place, mode: place.chmod(mode))


def test_a_folder_that_cannot_be_read_gets_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As where it may not be read, for tests that run as root."""

    def close(place: Path, mode: int) -> None:
        def closed(path: Path) -> Iterator[Path]:
            raise PermissionError(13, "Permission denied", str(place))

        monkeypatch.setattr(Path, "iterdir", closed)

    check_closed(paint(tmp_path / "data"), close)


def check_closed(root: Path, close: Callable[[Path, int], None]) -> None:
    close(root, 0)
    calls: list[Callable[[], Any]] = [
        lambda: folders.load_data(str(root), tiny()),
        lambda: unlabelled.load_unlabelled(str(root), tiny(), 4),
        lambda: load_asked(str(root)),
        lambda: list(parts_of(root, 4)),
    ]
    try:
        for call in calls:
            with pytest.raises(InvalidValueError, match=r"data cannot be read \(Permission denied\); give a folder"):
                call()
    finally:
        root.chmod(0o700)


def test_a_whole_square_is_not_cropped_for_models_of_transformers(saved: Path) -> None:
    """The processor scales to 40 and cuts 32 out of the middle; of a whole square of 32 nothing is lost."""
    model = load_pretrained(str(saved), True)
    square = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    model.processor = transformers.CLIPImageProcessor(size={"shortest_edge": 40}, crop_size=SIDE)
    mean, std = (
        torch.tensor(value)[:, None, None] for value in (model.processor.image_mean, model.processor.image_std)
    )
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255
    found = image_transform(model, whole=True)(square)
    torch.testing.assert_close(found, (pixels - mean) / std, atol=1e-4, rtol=0)
    assert not torch.allclose(image_transform(model)(square), found, atol=1e-2)
    model.processor = None
    assert image_transform(model, whole=True)(square).shape == (3, SIDE, SIDE)


def test_a_size_that_is_given_is_that_of_pictures(saved: Path) -> None:
    picture = Image.new("RGB", (70, 50))
    for name, side in (("deit_tiny_patch16_224", 64), (f"hf:{saved}", 64)):
        model, shape = load_model(name, side, False)
        assert shape == (3, side, side) and image_transform(model)(picture).shape == shape

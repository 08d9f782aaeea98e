"""Images without labels: folders of images alone, class folders whose labels are left out, and photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from reals import real

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.data import fashion_mnist, folders, photographs
from tokenreduce.lab.data.inputs import fashion_input, image_transform, input_side
from tokenreduce.lab.data.plain_folders import NO_LABEL, is_plain
from tokenreduce.lab.shipped import fashion_vit

SIDE = 32


def tiny(**arguments: Any) -> Any:
    return timm.create_model("deit_tiny_patch16_224", img_size=SIDE, num_classes=4, **arguments).eval()


def paint(root: Path, *names: str) -> Path:
    """A folder with one grey picture a name, each of its own shade."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (48, 40), (10 + 20 * number,) * 3).save(root / name)
    return root


def shades(data: folders.Data) -> list[int]:
    """The shade of each image, of a model whose inputs are grey values."""
    return [round((float(image.mean()) * fashion_mnist.STD + fashion_mnist.MEAN) * 255) for image, _ in data.images]


def test_images_alone_have_no_labels(tmp_path: Path) -> None:
    root = paint(tmp_path / "all", "b10.png", "b9.JPG", "a.png")
    for name in (".DS_Store", "notes.txt"):
        (root / name).write_bytes(b"x")
    data = folders.load_data(str(root), tiny())
    assert data.class_names == () and [label for _, label in data.images] == [NO_LABEL] * 3
    assert data.remarks == (f"1 file is no image: {root / 'notes.txt'}",)
    assert shades(folders.load_data(str(root), fashion_vit.build())) == pytest.approx([50, 30, 10], abs=1), "in order"
    images, labels = next(iter(folders.load_data(str(root), tiny(), limit=2).batches(9)))
    assert images.shape == (2, 3, 224, 224) and labels.tolist() == [NO_LABEL] * 2


def test_labels_are_left_out_at_any_depth(tmp_path: Path) -> None:
    root = paint(tmp_path / "all", "cat/a.png", "cat/front/b.png", "dog/c.png", "d.png", ".git/e.png")
    (root / "circle").symlink_to(root, target_is_directory=True)
    assert not is_plain(root)
    with pytest.raises(InvalidValueError, match=r"d.png lies beside .* or leave the labels out with --head none"):
        folders.load_data(str(root), tiny())
    (root / "d.png").rename(root / "dog" / "d.png")
    with pytest.raises(InvalidValueError, match=r"in a class folder.* or leave the labels out with --head none"):
        folders.load_data(str(root), tiny())
    data = folders.load_data(str(root), tiny(), labels=False)
    assert len(data) == 4 and data.class_names == () and data.remarks == ()


def test_folders_without_images_get_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=r"holds no images; expected .*/<class>/<image>, or images alone"):
        folders.load_data(str(tmp_path), tiny())
    with pytest.raises(InvalidValueError, match=r"holds no images; give a folder with .jpg or .png files, at any"):
        folders.load_data(str(tmp_path), tiny(), labels=False)
    for labels in (True, False):
        with pytest.raises(InvalidValueError, match=r"no data .*nowhere'; valid: fashion-mnist, imagenet, photographs"):
            folders.load_data(str(tmp_path / "nowhere"), tiny(), labels=labels)


def test_pictures_reach_the_shipped_model_in_its_own_form() -> None:
    raw, _ = fashion_mnist.load("test", fashion_mnist.SUBSET)
    picture = Image.fromarray(raw[5, 0].numpy()).convert("RGB")
    torch.testing.assert_close(fashion_input(picture), fashion_mnist.normalise(raw[5]))
    assert image_transform(fashion_vit.build()) is fashion_input


@real
def test_photographs_are_squares_as_the_model_takes_them() -> None:
    """The whole square, scaled once: nothing is cropped, also where a model is officially evaluated on the middle."""
    model = timm.create_model("vit_tiny_patch16_224").eval()
    assert model.pretrained_cfg["crop_pct"] < 1 and input_side(model) == 224
    data = folders.load_data("photographs", model, limit=11)
    squares, names = photographs.photographs(11, 224)
    assert data.images.names == names and data.class_names == () and data.in_memory
    found, labels = next(iter(data.batches(11)))
    assert torch.equal(found, (squares.float() / 255 - 0.5) / 0.5) and labels.tolist() == [NO_LABEL] * 11
    assert len(folders.load_data("photographs", fashion_vit.build())) == photographs.COUNT
    grey = np.array(Image.fromarray(photographs.photographs(1, 28)[0][0].permute(1, 2, 0).numpy()).convert("L"))
    shown = folders.load_data("photographs", fashion_vit.build(), limit=1).images[0][0]
    torch.testing.assert_close(shown, fashion_mnist.normalise(torch.from_numpy(grey)[None]))


def test_photographs_that_are_not_installed_get_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photographs, "find_spec", lambda name: None)
    assert photographs.installed() == []
    with pytest.raises(InvalidValueError, match=r"neither is installed: pip install 'tokenreduce\[real\]'"):
        folders.load_data("photographs", tiny())

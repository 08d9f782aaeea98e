"""Class folders as users have them: damaged files, other orders of names, wide grey values, turned photographs."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from command_rows import read
from PIL import Image

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.data import folders
from tokenreduce.lab.data.decoding import decode
from tokenreduce.lab.data.picture import load_image

# Grey values by which the model of `shades` tells its classes apart.
SHADES = {"night": 20, "noon": 230, "dawn": 90, "dusk": 160}
SIDE = 32


@pytest.fixture(scope="module")
def shades(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of transformers that is right on every image of `fill`."""
    import transformers

    names = list(SHADES)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=SIDE, patch_size=8,
        id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)},
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(config).eval()
    root = tmp_path_factory.mktemp("shades")
    processor = transformers.ViTImageProcessor(size={"height": SIDE, "width": SIDE})
    pictures = [Image.new("RGB", (SIDE, SIDE), (grey, grey, grey)) for grey in SHADES.values()]
    with torch.no_grad():
        inputs = processor(images=pictures, return_tensors="pt")["pixel_values"]
        features = model.vit(inputs).last_hidden_state[:, 0]
        inverse = torch.linalg.pinv(torch.cat([features, torch.ones(len(names), 1)], 1))
        model.classifier.weight.copy_(inverse[:-1].T)
        model.classifier.bias.copy_(inverse[-1])
    model.save_pretrained(root)
    processor.save_pretrained(root)
    return root


def fill(root: Path, names: dict[str, str], count: int = 2) -> Path:
    """A folder for each key of `names`, with images of the class that is its value."""
    for folder, name in names.items():
        (root / folder).mkdir(parents=True)
        for i in range(count):
            grey = SHADES[name]
            Image.new("RGB", (SIDE, SIDE), (grey, grey, grey)).save(root / folder / f"{i}.png")
    return root


@pytest.fixture
def evaluated(run: Callable[..., str], shades: Path, tmp_path: Path) -> Callable[..., Any]:
    def evaluate(data: Path, *more: object) -> Any:
        report = tmp_path / "report.json"
        output = run(
            "eval", "--model", f"hf:{shades}", "--data", data, "--method", "random", "--r", 1, "--workers", 0,
            "--json", report, *more,
        )  # fmt: skip
        rows, settings = read(report)
        return rows[0]["top1"], settings, output

    return evaluate


def test_labels_follow_names_and_not_the_order_of_folders(evaluated: Callable[..., Any], tmp_path: Path) -> None:
    top1, settings, output = evaluated(fill(tmp_path / "data", {name: name for name in SHADES}))
    assert top1 == 1.0 and settings["images"] == 8
    assert "matched to the model's classes by name" in output and "by name" in settings["remarks"][0]


def test_names_may_differ_in_case_and_signs_and_some_may_be_absent(
    evaluated: Callable[..., Any], tmp_path: Path
) -> None:
    top1, _, output = evaluated(fill(tmp_path / "data", {"Dusk": "dusk", "_Noon": "noon"}))
    assert top1 == 1.0 and "2 of the model's 4" in output
    fill(tmp_path / "odd", {"noon": "noon", "midnight": "night"})
    with pytest.raises(InvalidValueError, match="'midnight' has the name of no class of the model"):
        evaluated(tmp_path / "odd")


def test_empty_folders_stay_classes(evaluated: Callable[..., Any], tmp_path: Path) -> None:
    root = fill(tmp_path / "data", {"noon": "noon", "night": "night"})
    (root / "dawn").mkdir()
    (root / "dusk").mkdir()
    assert evaluated(root)[0] == 1.0
    model = timm.create_model("deit_tiny_patch16_224", img_size=32, num_classes=4)
    data = folders.load_data(str(root), model)
    assert data.class_names == ("dawn", "dusk", "night", "noon")
    assert [label for _, label in data.images] == [2, 2, 3, 3]


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_where_there_are_no_names_the_order_of_the_library_decides_and_is_said(
    library: str, tmp_path: Path, shades: Path
) -> None:
    root = fill(tmp_path / "data", {"class1": "noon", "class10": "noon", "class2": "noon"}, 1)
    model: Any = timm.create_model("deit_tiny_patch16_224", img_size=32, num_classes=3)
    if library == "transformers":
        from tokenreduce.lab.pretrained import load_pretrained

        model = load_pretrained(str(shades), True)
        model.model.config.id2label = {i: f"LABEL_{i}" for i in range(4)}
    data = folders.load_data(str(root), model)
    natural = ("class1", "class2", "class10")
    assert data.class_names == (natural if library == "timm" else tuple(sorted(natural)))
    assert ("2 before 10" if library == "timm" else "10 before 2") in data.remarks[0]


def test_nested_and_stray_images_are_refused(tmp_path: Path) -> None:
    model = timm.create_model("deit_tiny_patch16_224", img_size=32, num_classes=2)
    fill(tmp_path / "nested", {"cat/front": "noon", "cat/back": "noon", "dog": "noon"})
    with pytest.raises(InvalidValueError, match=r"cat/back \(and 1 more\) is a folder in a class folder"):
        folders.load_data(str(tmp_path / "nested"), model)
    root = fill(tmp_path / "stray", {"cat": "noon", "dog": "noon"})
    (root / "cat" / "0.png").rename(root / "stray.png")
    with pytest.raises(InvalidValueError, match=r"stray.png lies beside the class folders and has no class"):
        folders.load_data(str(root), model)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_images_that_cannot_be_read_are_left_out_counted_and_named(
    workers: int, batch_size: int, evaluated: Callable[..., Any], tmp_path: Path
) -> None:
    root = fill(tmp_path / "data", {name: name for name in SHADES}, 3)
    whole = (root / "noon" / "0.png").read_bytes()
    damaged = {"noon/0.png": b"", "noon/1.png": b"text", "night/2.png": whole[: len(whole) // 2]}
    for name, content in damaged.items():
        (root / name).write_bytes(content)
    top1, settings, output = evaluated(root, "--batch-size", batch_size, "--workers", workers)
    assert settings["images"] == 9 and top1 == 1.0 and "9 images of" in output
    assert "3 of 12 images" in output and "left out" in output
    assert len(settings["left_out"]) == 3
    for name, told in zip(sorted(damaged), sorted(settings["left_out"]), strict=True):
        assert str(root / name) in told
    labels = torch.cat([labels for _, labels in folders.load_data(str(root), tiny()).batches(batch_size)])
    assert labels.bincount().tolist() == [3, 3, 2, 1]


def tiny() -> Any:
    return timm.create_model("deit_tiny_patch16_224", img_size=32, num_classes=4).eval()


def test_a_gallery_leaves_images_out_too_and_none_that_can_be_read_is_said(
    evaluated: Callable[..., Any], tmp_path: Path
) -> None:
    names = {name: name for name in SHADES}
    root, gallery = fill(tmp_path / "data", names), fill(tmp_path / "gallery", names)
    (gallery / "noon" / "0.png").write_bytes(b"")
    _, settings, output = evaluated(root, "--head", "knn", "--gallery", gallery)
    assert settings["gallery_images"] == 7 and "1 of 8 images of" in output
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(InvalidValueError, match="none of the 8 images can be read; the first"):
        evaluated(root)


def test_all_kinds_of_images_are_read_and_other_files_are_counted_but_hidden_ones(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", {"noon": "noon", "night": "night"}, 1)
    picture = Image.new("RGB", (SIDE, SIDE), (230, 230, 230))
    for name in ("a.webp", "b.bmp", "c.JPG", "d.jpeg", "e.PNG"):
        picture.save(root / "noon" / name)
    for name in (".DS_Store", "Thumbs.db", "._0.png", "desktop.ini"):
        (root / "noon" / name).write_bytes(b"x")
        (root / name).write_bytes(b"x")
    (root / ".git").mkdir()
    data = folders.load_data(str(root), tiny())
    assert len(data) == 7 and data.class_names == ("night", "noon") and len(data.remarks) == 1
    (root / "noon" / "f.heic").write_bytes(b"x")
    (root / "noon" / "notes.txt").write_bytes(b"x")
    assert "2 files are no images" in folders.load_data(str(root), tiny()).remarks[1]


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_grey_values_of_16_bits_are_scaled(ending: str, tmp_path: Path) -> None:
    """The picture that 8 bits would show, in every reader."""
    values = np.linspace(0, 65535, 64 * 64).round().astype(np.uint16).reshape(64, 64)
    path = tmp_path / "noon" / f"wide.{ending}"
    path.parent.mkdir()
    (tmp_path / "night").mkdir()
    Image.fromarray(values).save(path)
    expected = (values / 257).round().astype(np.uint8)
    assert np.array_equal(np.array(decode(path, upright=True).convert("L")), expected)
    Image.fromarray(expected).save(tmp_path / "noon" / "8bits.png")
    read = [image for image, _ in folders.load_data(str(tmp_path), tiny()).images]
    torch.testing.assert_close(read[0], read[1])
    torch.testing.assert_close(load_image(path, tiny())[1], read[0])


def test_wide_values_of_unknown_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(InvalidValueError, match="70000 in 32 bits, whose range is unknown"):
        decode(tmp_path / "a.tif", upright=True)
    Image.fromarray(np.full((4, 4), 70, np.float32)).save(tmp_path / "b.tif")
    assert decode(tmp_path / "b.tif", upright=True).convert("L").getpixel((0, 0)) == 70


def test_photographs_are_turned_alike_by_all_commands_with_a_switch(tmp_path: Path) -> None:
    stored = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint32).reshape(64, 64, 3).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "noon").mkdir()
    (tmp_path / "night").mkdir()
    path = tmp_path / "noon" / "a.png"
    stored.save(path, exif=exif)
    model = tiny()
    shown = {}
    for upright, picture in ((True, stored.rotate(-90)), (False, stored)):
        image = folders.load_data(str(tmp_path), model, upright=upright).images[0][0]
        torch.testing.assert_close(image, folders.image_transform(model)(picture))
        torch.testing.assert_close(load_image(path, model, upright)[1], image)
        shown[upright] = image
    assert not torch.equal(shown[True], shown[False])


def test_the_switch_is_an_option_of_eval_and_visualize(evaluated: Callable[..., Any], tmp_path: Path) -> None:
    root = fill(tmp_path / "data", {name: name for name in SHADES})
    assert evaluated(root)[1]["upright"] is True and evaluated(root, "--no-exif")[1]["upright"] is False


@pytest.fixture
def spawning(request: pytest.FixtureRequest) -> Iterator[None]:
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.parametrize("spawning", ["spawn", "forkserver"], indirect=True)
def test_workers_may_be_processes_started_afresh(spawning: None, evaluated: Callable[..., Any], tmp_path: Path) -> None:
    assert evaluated(fill(tmp_path / "data", {name: name for name in SHADES}), "--workers", 1)[0] == 1.0


def test_one_class_is_refused_with_a_sentence(evaluated: Callable[..., Any], tmp_path: Path) -> None:
    for split in ("train", "val"):
        fill(tmp_path / "data" / split, {"day": "noon"})
    for head in ("knn", "trained"):
        with pytest.raises(InvalidValueError, match=r"has one class \(day\), in which every answer is right"):
            evaluated(tmp_path / "data", "--head", head)


def test_images_beyond_the_limit_of_pillow_are_named(
    monkeypatch: pytest.MonkeyPatch, evaluated: Callable[..., Any], tmp_path: Path
) -> None:
    root = fill(tmp_path / "data", {name: name for name in SHADES})
    Image.new("RGB", (200, 100)).save(root / "noon" / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    _, settings, _ = evaluated(root)
    assert settings["images"] == 8
    assert re.search(
        r"large.png is larger than Pillow reads .* raise PIL.Image.MAX_IMAGE_PIXELS", settings["left_out"][0]
    )
    with pytest.raises(InvalidValueError, match=r"large.png is larger than Pillow reads"):
        load_image(root / "noon" / "large.png", tiny())

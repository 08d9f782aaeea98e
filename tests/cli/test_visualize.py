"""`tokenreduce visualize` end to end."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from reals import real

import tokenreduce
from tokenreduce.cli import visualize as visualization
from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.data import photographs
from tokenreduce.lab.data.picture import load_image
from tokenreduce.lab.shipped import fashion_vit


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What `visualize` hands over to be drawn: (pixels, rows, grid) of each picture, which is drawn all the same."""
    seen: list[tuple[Any, ...]] = []
    draw = visualization.draw_methods

    def spy(pixels: Any, rows: Any, grid: Any, path: Path) -> None:
        seen.append((pixels, rows, grid))
        draw(pixels, rows, grid, path)

    monkeypatch.setattr(visualization, "draw_methods", spy)
    return seen


def test_visualize(run: Callable[..., str], tmp_path: Path, drawn: list[tuple[Any, ...]]) -> None:
    out = tmp_path / "new" / "tokens.png"
    methods = "tome,token_transforming,evit"
    output = run("visualize", "--method", methods, "--r", 9, "--option", "tome.metric=features", "--out", out)
    [(pixels, rows, grid)] = drawn
    assert pixels.shape == (1, 28, 28) and grid == (14, 14)
    assert [row.name for row in rows] == ["tome\nr=9", "token_transforming\nr=9", "evit\nr=9"]
    for row in rows:
        counts = {0: 187, 2: 169, 5: 142, 8: 115, 11: 88}
        assert list(row.maps) == [f"after layer {layer}\n{n} tokens" for layer, n in counts.items()]
        assert [token_map.count for token_map in row.maps.values()] == list(counts.values())
        assert all(token_map.entered == 196 for token_map in row.maps.values())
        assert float(row.sizes.sum()) == pytest.approx(196, abs=0.01) and len(row.sizes) == 88
    assert "tome at r=9: 196 -> 88 image tokens" in output and f"wrote {out}" in output.replace("\n", "")
    with Image.open(out) as picture:
        assert picture.width > 1000 and picture.height > 500


def test_visualize_draws_the_sizes_after_the_last_layer_it_shows(
    run: Callable[..., str], tmp_path: Path, drawn: list[tuple[Any, ...]]
) -> None:
    run("visualize", "--layers", "4,1", "--r", 10, "--out", tmp_path / "a.png")
    run("visualize", "--layers", "1", "--method", "pool", "--r", 0, "--out", tmp_path / "b.png")
    [(_, [row], _), (_, [nothing], _)] = drawn
    assert list(row.maps) == ["after layer 1\n176 tokens", "after layer 4\n146 tokens"]
    assert len(row.sizes) == 146 and row.sizes.sum() == 196
    assert list(nothing.maps) == ["after layer 1\n196 tokens"] and (nothing.sizes == 1).all()


def test_visualize_shows_what_the_model_sees(
    run: Callable[..., str], tmp_path: Path, drawn: list[tuple[Any, ...]]
) -> None:
    """A wide image, red left and green right around a blue middle: the crop shows the middle, in its colours."""
    wide = Image.new("RGB", (400, 200), (0, 0, 100))
    wide.paste((255, 0, 0), (0, 0, 80, 200))
    wide.paste((0, 255, 0), (320, 0, 400, 200))
    wide.save(tmp_path / "wide.png")
    choice = ("--image", tmp_path / "wide.png", "--r", 5, "--out", tmp_path / "out.png")
    run("visualize", *choice)
    run("visualize", *choice, "--model", "vit_tiny_patch16_224", "--no-pretrained")
    (grey, _, _), (colour, _, grid) = drawn
    assert grey.shape == (1, 28, 28) and set(grey.unique().tolist()) == {11}, "the luminance of blue"
    assert colour.shape == (3, 224, 224) and grid == (14, 14)
    assert torch.allclose(colour, torch.tensor([0, 0, 100 / 255])[:, None, None].expand(3, 224, 224), atol=0.01)


@pytest.mark.parametrize("installed", [pytest.param(True, marks=real), False])
def test_without_an_image_a_photograph_is_drawn_where_some_are_installed(
    installed: bool,
    run: Callable[..., str],
    tmp_path: Path,
    drawn: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not installed:
        monkeypatch.setattr(photographs, "find_spec", lambda name: None)
    choice = ("--r", 5, "--out", tmp_path / "out.png", "--layers", 1)
    run("visualize", *choice, "--model", "vit_tiny_patch16_224", "--no-pretrained")
    run("visualize", *choice)
    (shown, _, _), (garment, _, _) = drawn
    assert shown.shape == (3, 224, 224) and float(shown.std()) > 0.1
    assert torch.equal(shown[0], shown[2]) is not installed, "garments are grey"
    assert garment.shape == (1, 28, 28)
    assert torch.equal(garment, load_image(None, fashion_vit.build())[0]), "the model of garments gets one in any case"


def test_visualize_goes_on_where_a_method_cannot(
    run: Callable[..., str], tmp_path: Path, drawn: list[tuple[Any, ...]]
) -> None:
    output = run("visualize", "--method", "pool,random", "--ratio", 0.99, "--out", tmp_path / "a.png")
    assert [row.name for row in drawn[0][1]] == ["random\nratio=0.99"]
    assert "pool at ratio=0.99 was not run: ratio=0.99 asks for 1 of 196" in output


ADAPTIVE = [name for name in tokenreduce.methods() if tokenreduce.describe(name)["adaptive"]]


def test_visualize_adaptive_methods_without_a_budget(
    run: Callable[..., str], tmp_path: Path, drawn: list[tuple[Any, ...]]
) -> None:
    names = ADAPTIVE[:2]
    output = run("visualize", "--method", ",".join(names), "--out", tmp_path / "a.png")
    assert [row.name for row in drawn[0][1]] == names
    assert f"{names[0]}: 196 -> " in output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--image", "nowhere.png", "--r", "4"], "--image nowhere.png is no file; give a PNG or JPEG file"),
        (["--image", __file__, "--r", "4"], "is not an image that Pillow can read; give a PNG"),
        (["--layers", "0,12", "--r", "4"], "--layers names layer 12; the model has 12 layers, choose from 0 to 11"),
        (["--layers", "first", "--r", "4"], "--layers is 'first'; give whole numbers separated by commas"),
        (["--out", "tokens.txt", "--r", "4"], "unknown kind of picture in --out '.txt'; valid: .jpg, .pdf, .png, .svg"),
        (["--method", "tome,tme", "--r", "4"], "unknown method 'tme'"),
        (["--method", "", "--r", "4"], "unknown method ''"),
        (["--method", "pool", "--ratio", "0.99"], "ratio=0.99 asks for 1 of 196 image tokens"),
        (["--model", "resnet18", "--no-pretrained", "--r", "4"], "holds no backbone that tokenreduce knows"),
    ],
)
def test_visualize_refuses_with_a_sentence(run: Callable[..., str], arguments: list[str], sentence: str) -> None:
    with pytest.raises(InvalidValueError, match=re.escape(sentence)):
        run("visualize", *arguments)


def test_names_of_files_are_no_markup(run: Callable[..., str], tmp_path: Path) -> None:
    out = tmp_path / "v[red].png"
    assert "v[red].png" in run("visualize", "--r", "4", "--out", out) and out.exists()

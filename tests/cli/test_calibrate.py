"""`tokenreduce calibrate`: from a folder of images to a file that `patch` takes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tokenreduce import patch, report
from tokenreduce.cli import arguments
from tokenreduce.cli import calibrate as command
from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.lab.data import fashion_mnist
from tokenreduce.lab.data.photographs import sources
from tokenreduce.lab.data.unlabelled import load_unlabelled, spread
from tokenreduce.lab.shipped.fashion_vit import build, fashion_vit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images, _ = fashion_mnist.load("test", fashion_mnist.SUBSET)
    for i in range(12):
        place = tmp_path / "images" / f"film{i % 6}" / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i, 0].numpy()).save(place)
    (tmp_path / "images" / "film0" / "0broken.png").write_bytes(b"no picture")
    (tmp_path / "images" / ".hidden").mkdir()
    (tmp_path / "images" / ".hidden" / "x.png").write_bytes(b"no picture")
    return tmp_path / "images"


def test_from_a_folder_to_a_schedule(folder: Path, tmp_path: Path, run: Callable[..., str]) -> None:
    out, picture = tmp_path / "new" / "schedule.json", tmp_path / "layers.png"
    words = ("calibrate", "--model", "fashion_vit", "--images", folder, "--flops", 0.7, "--method", "tome")
    rest = ("--no-greedy", "--limit", 7, "--by-folder", "--out", out, "--sensitivities", picture)
    rest = (*rest, "--json", tmp_path / "found.json")
    text = run(*words, *rest)
    assert "keep it" in text and "broken.png" in text and ".hidden" not in text
    assert "token error when one layer alone reduces" in text and picture.read_bytes().startswith(b"\x89PNG")
    known = json.loads(out.read_text())["calibration"]
    assert (known["model"], known["sources"], known["images"]) == ("fashion_vit", 6, {"choose": 3, "check": 3})
    assert len(known["sensitivities"]) == 12 * 4 and "torch" in known["environment"]
    shown = json.loads((tmp_path / "found.json").read_text())
    assert shown.pop("said") in text and shown == json.loads(out.read_text())
    model = patch(fashion_vit(), schedule=out)
    images, _ = fashion_mnist.load("test", fashion_mnist.SUBSET)
    model(fashion_mnist.normalise(images[:1]))
    assert list(report(model).tokens) == known["tokens"]
    trials = out.with_suffix(".trials.jsonl")
    before = trials.read_text()
    assert run(*words, *rest) == text and trials.read_text() == before


def test_sources_are_files_or_folders(folder: Path) -> None:
    model = build(depth=1)
    by_file, by_folder = (load_unlabelled(str(folder), model, 100, by_folder=at) for at in (False, True))
    assert len(set(by_file.sources)) == 12 and sorted(set(by_folder.sources)) == [f"film{i}" for i in range(6)]
    assert by_file.images.shape == (12, 1, 28, 28) and "broken.png" in by_file.left_out[0]
    images, _ = fashion_mnist.load("test", fashion_mnist.SUBSET)
    place = by_file.sources.index("film1/7.png")
    np.testing.assert_allclose(by_file.images[place], fashion_mnist.normalise(images[7]), atol=1e-6)


def test_limits_and_wrong_folders_are_named(tmp_path: Path, folder: Path, run: Callable[..., str]) -> None:
    assert spread(10, 4) == [0, 2, 5, 7] and spread(3, 5) == [0, 1, 2]
    model = build(depth=1)
    with pytest.raises(InvalidValueError, match="photographs, fashion-mnist, or a folder"):
        load_unlabelled(str(tmp_path / "none"), model, 4)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidValueError, match="holds no images"):
        load_unlabelled(str(tmp_path / "empty"), model, 4)
    with pytest.raises(InvalidTypeError, match="--option needs --method"):
        run("calibrate", "--model", "fashion_vit", "--images", folder, "--flops", 0.6, "--option", "early=0")


@pytest.mark.parametrize("more", [("--method", "ward,tomee"), ("--method", "ward,tome", "--option", "tome.colour=1")])
def test_wrong_methods_are_named_before_a_model_is_loaded(
    more: tuple[str, ...], folder: Path, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def loads(*given: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(command, "load_model", loads)
    with pytest.raises(InvalidValueError, match=r"did you mean 'tome'|unknown option of tome"):
        run("calibrate", "--model", "fashion_vit", "--images", folder, "--flops", 0.6, *more)


def test_no_layer_that_can_reduce_alone_is_said(
    folder: Path, tmp_path: Path, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "layer_rows", lambda *given: [])
    base = ("calibrate", "--model", "fashion_vit", "--images", folder, "--flops", 0.7, "--method", "tome")
    picture = tmp_path / "layers.png"
    text = run(*base, "--no-greedy", "--limit", 4, "--out", tmp_path / "s.json", "--sensitivities", picture)
    assert f"no layer can reduce alone, so {picture} was not written" in text and not picture.exists()


def test_photographs_are_cut_and_know_their_source() -> None:
    pytest.importorskip("sklearn")
    names = [path.stem for path in sources()]
    data = load_unlabelled("photographs", build(depth=1), len(names) + 1)
    assert data.sources == [*names, names[0]] and data.images.shape[1:] == (1, 28, 28)


def test_progress_is_a_line_about_every_minute_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    written, now = io.StringIO(), 0.0
    monkeypatch.setattr(arguments, "Console", lambda stderr, markup: Console(file=written, markup=markup))
    monkeypatch.setattr("tokenreduce.cli.arguments.time.monotonic", lambda: now)
    with arguments.progress_bar() as tell:
        for now in range(0, 150, 10):
            tell(now / 200, f"[{now}] images")
    assert written.getvalue().splitlines() == ["30% [60] images", "60% [120] images"]
    with arguments.progress_bar(shown=False) as tell:
        now = 1000.0
        tell(0.5, "nothing")
    assert "nothing" not in written.getvalue()

"""`tokenreduce eval` of images without labels, end to end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from command_rows import ROW, read
from PIL import Image
from reals import real

from tokenreduce.errors import InvalidTypeError, InvalidValueError

ERRORS = {"class_error", "token_error"}
UNLABELLED = (ROW - {"top1", "top5", "top1_change"}) | {f"{name}_geometric" for name in ERRORS}


@pytest.fixture
def wallpapers(tmp_path: Path) -> Path:
    root = tmp_path / "wallpapers"
    root.mkdir()
    for number in range(3):
        Image.linear_gradient("L").rotate(90 * number).save(root / f"{number}.png")
    return root


def test_a_folder_of_images_gives_errors_and_no_accuracy(
    run: Callable[..., str], tmp_path: Path, wallpapers: Path
) -> None:
    choice = ("--method", "ward,random", "--flops", 0.6, "--workers", 0)
    output = run("eval", "--data", wallpapers, *choice, "--json", tmp_path / "e.json")
    rows, settings = read(tmp_path / "e.json")
    assert settings["head"] == "none" and settings["images"] == 3 and settings["upright"] is True
    assert all(row.keys() == UNLABELLED for row in rows)
    assert rows[0]["token_error"] == 0 < rows[1]["token_error"] < rows[2]["token_error"]
    assert "top-1" not in output and "geometric mean" in output
    assert f"3 images of {wallpapers}, head none" in " ".join(output.split())  # long paths are wrapped


def test_labels_may_be_left_out(run: Callable[..., str], tmp_path: Path, wallpapers: Path) -> None:
    choice = ("eval", "--method", "random", "--r", 9, "--limit", 4, "--json", tmp_path / "e.json")
    run(*choice, "--head", "none")
    errors, settings = read(tmp_path / "e.json")
    run(*choice)
    labelled, _ = read(tmp_path / "e.json")
    assert settings["data"] == "fashion-mnist" and errors[1].keys() == UNLABELLED and labelled[1].keys() == ROW
    assert all(errors[1][key] == labelled[1][key] for key in ERRORS)
    (wallpapers / "deep").mkdir()
    run(*choice, "--head", "none", "--data", wallpapers, "--workers", 0)
    assert read(tmp_path / "e.json")[1]["images"] == 3


def test_images_that_cannot_be_read_are_named(run: Callable[..., str], tmp_path: Path, wallpapers: Path) -> None:
    (wallpapers / "broken.jpg").write_bytes(b"text")
    choice = ("--method", "random", "--r", 9, "--workers", 0)
    output = run("eval", "--data", wallpapers, *choice, "--json", tmp_path / "e.json")
    assert read(tmp_path / "e.json")[1]["images"] == 3
    assert "1 of 4 images of" in output and "broken.jpg is not an image" in output


@pytest.mark.parametrize("head", ["trained", "knn", "zero-shot"])
def test_heads_need_labels(run: Callable[..., str], wallpapers: Path, head: str) -> None:
    with pytest.raises(InvalidValueError, match=f"have no labels, which the head {head} needs: give --head none"):
        run("eval", "--data", wallpapers, "--head", head, "--r", 4)


def test_dense_tasks_have_no_heads(run: Callable[..., str]) -> None:
    with pytest.raises(InvalidTypeError, match="--task segmentation does not use --head none"):
        run("eval", "--task", "segmentation", "--head", "none", "--r", 4)


@real
def test_the_real_model_on_photographs(run: Callable[..., str], tmp_path: Path) -> None:
    choice = ("--method", "tome,random", "--flops", 0.6, "--limit", 3)
    output = run("eval", "--model", "dinov2_small", *choice, "--json", tmp_path / "e.json")
    rows, settings = read(tmp_path / "e.json")
    assert settings["data"] == "photographs" and settings["images"] == 3 and "upright" not in settings
    assert all(row.keys() == UNLABELLED | {"saliency_error", "saliency_error_geometric"} for row in rows)
    assert [row["tokens_left"] for row in rows[:1]] == [256]
    for name in (*ERRORS, "saliency_error"):
        assert 0 == rows[0][name] < rows[1][name] < rows[2][name] < 1, name
    assert "saliency error" in output
    run("eval", "--model", "dinov2_small", "--no-pretrained", *choice, "--json", tmp_path / "e.json")
    assert "saliency_error" not in read(tmp_path / "e.json")[0][1], "the head belongs to the trained features"

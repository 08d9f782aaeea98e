"""`--schedule`: files of `calibrate` and `save_patch` as rows of `eval`, `bench` and `visualize`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_rows import read

import tokenreduce
from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.lab.shipped.fashion_vit import fashion_vit
from tokenreduce.lab.shipped.scene_vlm import scene_vlm


@pytest.fixture
def schedule(tmp_path: Path) -> Path:
    """Of a method with an option, at counts that no other budget gives."""
    keeps = tokenreduce.Schedule.keep({2: 0.5, 9: 0.5})
    model: Any = tokenreduce.patch(fashion_vit(), "random", schedule=keeps, seed=3)
    tokenreduce.save_patch(model, tmp_path / "schedule.json")
    return tmp_path / "schedule.json"


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Of what enters a language model."""
    tokenreduce.save_patch(tokenreduce.patch(scene_vlm(False), "divprune", keep=0.25), tmp_path / "kept.json")
    return tmp_path / "kept.json"


def test_a_file_is_a_row_of_eval(run: Callable[..., str], tmp_path: Path, schedule: Path) -> None:
    """With what the file says, its options too; alone, or before methods and budgets."""
    choice = ("eval", "--limit", 6, "--json", tmp_path / "e.json")
    run(*choice, "--schedule", schedule)
    alone = read(tmp_path / "e.json")[0]
    assert [(row["method"], row["budget"]) for row in alone[1:]] == [("random", f"schedule={schedule}")]
    run(*choice, "--schedule", schedule, "--r", 9)
    rows = read(tmp_path / "e.json")[0]
    assert rows[:2] == alone and [(row["method"], row["budget"]) for row in rows[2:]] == [("tome", "r=9")]
    assert rows[1]["tokens_left"] == 49
    schedule.write_text(schedule.read_text().replace('"seed": 3', '"seed": 4'))
    run(*choice, "--schedule", schedule)
    assert read(tmp_path / "e.json")[0][1]["token_error"] != alone[1]["token_error"]


def test_resuming_sees_what_the_file_holds(run: Callable[..., str], tmp_path: Path, schedule: Path) -> None:
    """A file of the same name may be another one."""
    resume = ("--resume", tmp_path / "r.jsonl", "--json", tmp_path / "e.json")
    left = []
    for r in (4, 4, 9):
        tokenreduce.save_patch(tokenreduce.patch(fashion_vit(), "tome", r=r), schedule)
        run("eval", "--limit", 6, "--schedule", schedule, *resume)
        left.append(read(tmp_path / "e.json")[0][1]["tokens_left"])
    assert left == [148, 148, 88]


def test_a_file_is_a_row_of_bench(run: Callable[..., str], tmp_path: Path, schedule: Path) -> None:
    choice = (
        "--model",
        "fashion_vit",
        "--batch-size",
        1,
        "--rounds",
        1,
        "--min-time",
        0,
        "--json",
        tmp_path / "b.json",
    )
    run("bench", "--schedule", schedule, *choice)
    rows = read(tmp_path / "b.json")[0]
    assert [(row["method"], row["tokens_left"]) for row in rows] == [("unpatched", 196), ("random", 49)]


def test_a_file_is_a_row_of_visualize(run: Callable[..., str], tmp_path: Path, schedule: Path) -> None:
    choice = ("visualize", "--out", tmp_path / "a.png", "--json", tmp_path / "v.json")
    said = run(*choice, "--schedule", schedule, "--schedule", schedule)
    rows, settings = read(tmp_path / "v.json")
    assert [(row["method"], row["tokens_left"], row["tokens"][-1]) for row in rows] == [("random", 49, 49)] * 2
    assert settings["model"] == "fashion_vit" and "196 -> 49 image tokens" in said


def test_files_of_language_models(run: Callable[..., str], tmp_path: Path, kept: Path, schedule: Path) -> None:
    out = ("--out", tmp_path / "a.png", "--no-pretrained", "--json", tmp_path / "v.json")
    said = run("visualize", "--schedule", kept, *out)
    assert "25 of 100 tokens of the image are left" in said
    assert [row["tokens_left"] for row in read(tmp_path / "v.json")[0]] == [25]
    run("eval", "--task", "vlm", "--schedule", kept, "--limit", 1, "--no-pretrained", "--json", tmp_path / "e.json")
    assert [row["method"] for row in read(tmp_path / "e.json")[0]] == ["unpatched", "divprune"]
    with pytest.raises(
        InvalidTypeError, match=f"visualize of {kept}, which is for language models, does not use --flops"
    ):
        run("visualize", "--schedule", kept, "--flops", "0.6")
    for command in (["eval"], ["bench"]):
        with pytest.raises(InvalidValueError, match="is a schedule for what enters a language model"):
            run(*command, "--schedule", kept)
    for command in (["eval", "--task", "vlm"], ["bench", "--task", "generate"]):
        with pytest.raises(InvalidValueError, match="is a schedule for the layers of a vision model"):
            run(*command, "--schedule", schedule)


def test_files_that_are_none(run: Callable[..., str], tmp_path: Path) -> None:
    for command in ("eval", "bench", "visualize"):
        with pytest.raises(InvalidValueError, match=r"none.json cannot be read"):
            run(command, "--schedule", tmp_path / "none.json")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["eval", "--task", "vlm", "--keep", "1.0", "--gallery-size", "0"], "--task vlm does not use --gallery-size"),
        (["eval", "--task", "vlm", "--keep", "1.0", "--workers", "0"], "--task vlm does not use --workers"),
        (["eval", "--task", "vlm", "--keep", "1.0", "--image-size", "28"], "--task vlm does not use --image-size"),
        (["eval", "--task", "segmentation", "--r", "4", "--workers", "1"], "segmentation does not use --workers"),
        (["eval", "--task", "segmentation", "--r", "4", "--gallery-size", "9"], "does not use --gallery-size"),
        (["eval", "--r", "4", "--data", "photographs", "--data-dir", "x"], "photographs does not use it, leave it out"),
        (["eval", "--r", "4", "--no-exif"], "--no-exif is for pictures in files; fashion-mnist does not use it"),
        (["compare", "--model", "fashion_vit", "--no-exif"], "--no-exif is for pictures in files; fashion-mnist"),
        (["eval", "--r", "4", "--data", "photographs", "--no-exif"], "pictures in files; photographs does not"),
        (["eval", "--task", "vlm", "--keep", "1.0", "--no-exif"], "pictures in files; scenes does not use it"),
        (["visualize", "--r", "4", "--no-exif"], "visualize without --image does not use --no-exif"),
        (["visualize", "--r", "4", "--question", "why"], "visualize without --keep does not use --question"),
        (["visualize", "--keep", "0.1", "--flops", "0.6"], "visualize with --keep does not use --flops; leave that"),
    ],
)
def test_options_that_nothing_reads_are_refused(run: Callable[..., str], given: list[str], says: str) -> None:
    with pytest.raises(InvalidTypeError, match=says):
        run(*given)


def test_a_size_for_eval(run: Callable[..., str], tmp_path: Path) -> None:
    from PIL import Image

    for number in range(2):
        Image.new("RGB", (60, 50), (90 * number, 9, 9)).save(tmp_path / f"{number}.png")
    choice = ("--model", "vit_tiny_patch16_224", "--no-pretrained", "--data", tmp_path, "--workers", 0, "--r", 1)
    run("eval", *choice, "--image-size", 64, "--json", tmp_path / "e.json")
    rows, settings = read(tmp_path / "e.json")
    assert rows[0]["tokens_left"] == 16 and settings["image_size"] == 64

"""`tokenreduce compare`: from a folder and a schedule of `calibrate` to a report; what does not fit is one sentence."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.lab.comparing.figures import figures
from tokenreduce.lab.data import fashion_mnist

pytest.importorskip("plotly")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images, _ = fashion_mnist.load("test", fashion_mnist.SUBSET)
    place = tmp_path / "images"
    place.mkdir()
    for i in range(8):
        Image.fromarray(images[i, 0].numpy()).save(place / f"{i}.jpg", quality=95)
    (place / "broken.jpg").write_bytes(b"no picture")
    (place / "notes.txt").write_text("none")
    return place


def test_two_commands_from_a_folder_to_a_schedule_and_a_report(
    folder: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    schedule, out = tmp_path / "schedule.json", tmp_path / "report"
    run("calibrate", "--model", "fashion_vit", "--images", folder, "--flops", 0.7, "--method", "tome", "--no-greedy",
        "--out", schedule)  # fmt: skip
    command = ["compare", "--model", "fashion_vit", "--methods", "ward,dtop", "--budgets", "0.8", "--data", folder]
    command += ["--schedule", schedule, "--out", out, "--no-speed", "--workers", 0, "--option", "ward.early=0"]
    text = run(*command)
    assert "broken.jpg" in text and "notes.txt" in text and "dtop at any budget was not run" in text
    assert "loses least" in text and "report.html" in text
    data = json.loads((out / "rows.json").read_text())
    budgets = [(row["method"], row["budget"]) for row in data["rows"]]
    assert budgets == [
        ("unpatched", None),
        ("tome", f"schedule={schedule}"),
        ("ward", "flops=0.8"),
        ("dtop", "any budget"),
    ]
    assert data["rows"][1]["flops_share"] == pytest.approx(0.7, abs=0.02) and "top1" not in data["rows"][0]
    shared = f"8 of the 8 images are among those that {schedule} was chosen on"
    assert shared in text.replace("\n", " ") and any(shared in remark for remark in data["settings"]["remarks"])
    assert data["settings"]["images"] == 8 and len(data["settings"]["left_out"]) == 1
    page = (out / "report.html").read_text()
    assert f"<p>{shared}" in page
    assert "tokenreduce compare --model fashion_vit" in page and "--no-speed" in page and "--limit" not in page
    assert shlex.quote(str(schedule)) in page and len(figures(data["rows"])) == 2
    before = (out / "rows.jsonl").read_text()
    assert run(*command) == text and (out / "rows.jsonl").read_text() == before


def test_options_are_for_named_methods(run: Callable[..., str], tmp_path: Path) -> None:
    base = ("compare", "--model", "fashion_vit", "--out", tmp_path, "--limit", 4)
    with pytest.raises(InvalidTypeError, match=r"needs the method it is for, such as ward\.early=0"):
        run(*base, "--option", "early=0")
    with pytest.raises(InvalidValueError, match="unknown option of ward"):
        run(*base, "--option", "ward.colour=0")
    with pytest.raises(InvalidValueError, match="--budgets is 'x'"):
        run(*base, "--budgets", "x")


@pytest.mark.parametrize("command", ["compare", "calibrate", "eval"])
def test_what_cannot_be_used_is_one_sentence(command: str, tmp_path: Path, run: Callable[..., str]) -> None:
    def tell(data: object, model: str = "fashion_vit") -> str:
        words = {"calibrate": "--images", "compare": "--data", "eval": "--data"}
        more = {"calibrate": ("--flops", 0.6), "compare": (), "eval": ("--flops", 0.6)}[command]
        out = () if command == "eval" else ("--out", tmp_path / "out" / "file")
        with pytest.raises((InvalidValueError, InvalidTypeError)) as error:
            run(command, "--model", model, words[command], data, *more, *out, "--no-pretrained")
        said = str(error.value)
        assert "\n" not in said and said
        return said

    for name in ("empty", "wrong", "broken"):
        (tmp_path / name).mkdir()
    (tmp_path / "wrong" / "0.heic").write_bytes(b"x")
    (tmp_path / "broken" / "0.jpg").write_bytes(b"x")
    assert "empty holds no images" in tell(tmp_path / "empty")
    wrong = tell(tmp_path / "wrong")
    assert "0.heic" in wrong and ".jpg" in wrong and "images end in" in wrong
    assert "can be read" in tell(tmp_path / "broken") and "0.jpg is a file" in tell(tmp_path / "broken" / "0.jpg")
    assert "nowhere" in tell(tmp_path / "nowhere")
    assert "holds no backbone" in tell(tmp_path / "broken", "resnet18")
    assert "unknown model" in tell(tmp_path / "broken", "vit_tinny")
    if command != "eval":
        (tmp_path / "one").mkdir()
        for i in range(4):
            Image.new("RGB", (64, 64), (i, i, i)).save(tmp_path / "one" / f"{i}.png")
        swin = tell(tmp_path / "one", "swin_tiny_patch4_window7_224")
        assert swin.count("windows") == 1 and ("no method" in swin or "none of the methods" in swin)

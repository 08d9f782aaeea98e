"""`tokenreduce bench --task generate` end to end, with small random models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_rows import read

from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.lab.shipped import vision_language
from tokenreduce.lab.shipped.random_llava import random_llava

KEYS = {"method", "budget", "options", "images_per_prompt", "places", "tokens_left", "prefill_share", "encoder_ms"}
KEYS |= {"prefill_ms", "prefill_limit_share", "ttft_ms", "ttft_interval", "ttft_limit_share", "speedup"}
KEYS |= {"speedup_interval", "ms_per_token", "token_limit_share", "kv_mib", "kv_share"}


def small_llava() -> Any:
    return random_llava(width=64, depth=3, side=4, words=50)


def test_rows_and_tables(run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision_language, "random_llava", small_llava)
    file = tmp_path / "rows.json"
    asked = ("--method", "divprune,fastv", "--keep", "0.25,4", "--images", "1,2", "--words", 2, "--min-time", 0)
    out = run("bench", "--task", "generate", *asked, "--rounds", 1, "--threads", 1, "--json", file)
    rows, settings = read(file)
    assert all(row.keys() == KEYS for row in rows) and len(rows) == 10
    assert [row["budget"] for row in rows[:5]] == [None, "keep=0.25", "keep=4", "keep=0.25", "keep=4"]
    assert [row["images_per_prompt"] for row in rows] == [1] * 5 + [2] * 5
    assert [row["tokens_left"] for row in rows] == [16, 4, 4, 4, 4, 32, 8, 8, 8, 8]
    assert settings == {
        "task": "generate",
        "model": "random-llava",
        "device": "cpu",
        "dtype": "float32",
        "words": 2,
        "rounds": 1,
        "min_time": 0,
        "pretrained": False,
    }
    assert "random-llava" in out and "the rows that are left" in out


def test_what_cannot_be_reached_is_said(run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision_language, "random_llava", small_llava)
    asked = ("--method", "divprune,globalcom2", "--keep", "0.5", "--images", "1", "--words", 1, "--min-time", 0)
    out = run("bench", "--task", "generate", "--rounds", 1, *asked)
    assert "globalcom2 at keep=0.5 was not run" in " ".join(out.split())


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        (["--method", "divprune"], InvalidTypeError, "the budget is missing; give --keep 0.1"),
        (["--keep", "some"], InvalidValueError, "--keep is 'some'"),
        (["--keep", "0.5", "--flops", "0.6"], InvalidTypeError, "--task generate does not use --flops"),
        (["--keep", "0.5", "--mode", "compile"], InvalidTypeError, "does not use --mode compile"),
        (["--keep", "0.5", "--images", "0"], InvalidValueError, "1 or more, such as 1,4"),
        (["--keep", "0.5", "--model", "fashion_vit"], InvalidValueError, "scene_vlm"),
        (["--keep", "0.5", "--model", "hf:/no/such"], InvalidValueError, "transformers cannot load '/no/such'"),
        (["--keep", "0.5", "--method", "divprun"], InvalidValueError, "divprune"),
    ],
)
def test_wrong_options(run: Callable[..., str], given: list[str], error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        run("bench", "--task", "generate", *given)


@pytest.mark.parametrize("given", [["--keep", "0.5"], ["--images", "1"], ["--words", "3"]])
def test_other_tasks_do_not_use_them(run: Callable[..., str], given: list[str]) -> None:
    with pytest.raises(InvalidTypeError, match="--task encode does not use"):
        run("bench", "--flops", "0.6", *given)


def test_models_by_name() -> None:
    """The shipped one with random weights; its prompts are made by hand, as they hold any number of images."""
    prompted = vision_language.load_prompted("scene_vlm", pretrained=False)
    assert vision_language.prompt_of(prompted, 2)["input_ids"].shape == (1, 240)

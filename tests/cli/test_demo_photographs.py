"""`tokenreduce demo --model dinov2_small`: its rows, what it says of them, and what it draws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_rows import ROW, read
from PIL import Image
from reals import real

from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.lab.quality import demo, demo_photographs


@real
def test_demo_of_the_real_model(run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("METHODS", ("ward", "random")), ("BUDGETS", (0.8, 0.6)), ("ROUNDS", 1), ("BATCH", 2)):
        monkeypatch.setattr(demo_photographs, name, value)
    drawn: list[Any] = []
    draw = demo_photographs.draw_tokens
    monkeypatch.setattr(demo_photographs, "draw_tokens", lambda *given: drawn.extend(given) or draw(*given))
    out, file = tmp_path / "out", tmp_path / "demo.json"
    output = run("demo", "--model", "dinov2_small", "--limit", 3, "--out", out, "--json", file)
    rows, settings = read(file)
    assert settings["sources"] == ["astronaut", "camera", "chelsea"] and settings["images"] == 3
    arms = [(name, f"flops={share}") for name in ("ward", "random") for share in (0.8, 0.6)]
    assert [(row["method"], row["budget"]) for row in rows] == [("unpatched", None), *arms]
    errors = {"class_error", "token_error", "saliency_error"}
    keys = (ROW - {"top1", "top5", "top1_change"}) | errors | {f"{name}_geometric" for name in errors}
    assert all(row.keys() == keys | {"images_per_second", "speedup"} for row in rows)
    for row in rows[1:]:
        assert row["flops_share"] == pytest.approx(float(row["budget"].removeprefix("flops=")), abs=0.01)
    assert all(rows[2][name] < rows[4][name] for name in errors), "ward loses less than chance"
    for heading in ("class error", "token error", "saliency error", "images/s", "speed-up"):
        assert heading in output
    assert "At 60% of the compute ward stays closest to the unpatched model" in output
    squares, maps, grid, path, title, answers = drawn
    assert squares.shape == (1, 3, 224, 224) and grid == (16, 16) and path == out / "tokens.png"
    assert "ward at 60%" in title and next(iter(maps)).startswith("after layer 2")
    assert [map.count for map in maps.values()][-1] == rows[2]["tokens_left"]
    assert list(answers) == ["saliency,\nunpatched", "saliency,\nward"]
    unpatched, reduced = answers.values()
    assert unpatched.max() > 0.5 and 0 < (unpatched - reduced).abs().mean() < 0.1
    for name in ("errors.png", "tokens.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 500 and picture.height > 200


@real
def test_every_method_or_a_few_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    lanes = demo_photographs.unlabelled_lanes
    monkeypatch.setattr(
        demo_photographs,
        "unlabelled_lanes",
        lambda model, arms, head: asked.append([arm.method for arm in arms]) or lanes(model, [], head),
    )
    demo_photographs.PhotographDemo(limit=1)
    demo_photographs.PhotographDemo(every=True, limit=1)
    assert set(asked[0]) == set(demo.METHODS) and {"tome", "gtp", "atc"} <= set(asked[1]) and len(asked[0]) == 15


def test_the_summary_is_of_the_middle_budget() -> None:
    summary = demo_photographs.PhotographDemo.summary
    rows = [
        {"method": "pool", "budget": "flops=0.8", "token_error": 0.01, "speedup": 1.2},
        {"method": "tome", "budget": "flops=0.6", "token_error": 0.04, "speedup": 1.5},
        {"method": "ward", "budget": "flops=0.6", "token_error": 0.02, "speedup": 1.4},
    ]
    shown: Any = None
    start = "At 60% of the compute"
    assert summary(shown, rows) == [
        f"{start} ward stays closest to the unpatched model: token error 0.0200, 0.50 of tome's, 1.40 times as fast."
    ]
    assert summary(shown, rows[:2]) == [
        f"{start} tome stays closest to the unpatched model: token error 0.0400, 1.50 times as fast."
    ]
    assert summary(shown, rows[:1]) == ["No method reaches 60% of the compute."]


def test_other_models_are_refused(run: Callable[..., str]) -> None:
    with pytest.raises(
        InvalidValueError, match="unknown model 'resnet18'; valid: dinov2_small, fashion_vim, fashion_vit"
    ):
        run("demo", "--model", "resnet18")
    with pytest.raises(InvalidTypeError, match="--task segmentation has a model of its own"):
        run("demo", "--task", "segmentation", "--model", "dinov2_small")


def test_what_is_missing_is_said(run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenreduce.lab.shipped.dinov2_small.find_spec", lambda name: name == "timm" or None)
    with pytest.raises(InvalidValueError, match=r"dinov2_small needs .*: pip install 'tokenreduce\[real\]'"):
        run("demo", "--model", "dinov2_small")

"""`tokenreduce demo` end to end, and what it makes of times."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_rows import ROW, read

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.quality import demo, demo_dense
from tokenreduce.lab.quality.evaluation import DENSE_MODELS


def test_demo(run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "ROUNDS", 1)
    monkeypatch.setattr(demo, "BATCH", 5)
    output = run("demo", "--limit", 20, "--out", tmp_path / "out", "--json", tmp_path / "demo.json")
    rows, settings = read(tmp_path / "demo.json")
    assert settings["images"] == 20
    arms = [(row["method"], row["budget"]) for row in rows]
    shares = ("flops=0.8", "flops=0.6", "flops=0.45")
    assert arms == [("unpatched", None), *((m, s) for m in demo.METHODS for s in shares)]
    assert {"ward", "tome", "random", "pool"} <= set(demo.METHODS)
    for row in rows:
        assert row.keys() == ROW | {"images_per_second", "speedup"}
    for row in rows[1:]:
        assert row["flops_share"] == pytest.approx(float(row["budget"].removeprefix("flops=")), abs=0.02)
    for heading in ("MACs", "share", "top-1", "change", "class error", "images/s", "speed-up", "tokens left"):
        assert heading in output
    best = min((row for row in rows if row["budget"] == "flops=0.6"), key=lambda row: row["class_error"])
    assert f"At 60% of the compute {best['method']} stays closest" in output
    for name in ("tradeoff.png", "tokens.png"):
        assert (tmp_path / "out" / name).stat().st_size > 10_000


def test_demo_says_what_cannot_be_reached(
    run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("ROUNDS", 1), ("METHODS", ("random", "pool")), ("BUDGETS", (0.9, 0.8, 0.1))):
        monkeypatch.setattr(demo, name, value)
    output = run("demo", "--limit", 3, "--out", tmp_path, "--json", tmp_path / "demo.json")
    rows, _ = read(tmp_path / "demo.json")
    refused = [row for row in rows if "refused" in row]
    assert [(row["method"], row["budget"]) for row in refused] == [("pool", "flops=0.1")]
    assert "pool at flops=0.1 was not run: flops=0.1 cannot be reached" in output
    assert "reachable minimum" in output


def test_summary_says_when_nothing_is_gained() -> None:
    slow = {"method": "tome", "budget": "flops=0.6", "class_error": 0.01, "top1_change": -0.005, "speedup": 0.9}
    assert demo.summarise([slow]) == [
        "At 60% of the compute tome stays closest to the unpatched model (class error 0.0100): top-1 changes by "
        "-0.50 points.",
        "Every method is slower than the unpatched model: on this machine reduction does not pay.",
    ]
    assert len(demo.summarise([slow | {"speedup": 1.1}])) == 1


@pytest.mark.parametrize("task", demo_dense.HEADLINES)
def test_demo_of_dense_tasks(
    task: str, run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_dense, "BATCH", 4)
    out, file = tmp_path / "out", tmp_path / "demo.json"
    output = run("demo", "--task", task, "--limit", 8, "--out", out, "--json", file)
    data = json.loads(file.read_text())
    rows, keys = data["rows"], {"segmentation": {"miou"}, "detection": {"ap", "ap50"}}[task]
    arms = [(name, f"flops={share}") for name in demo_dense.METHODS for share in (0.85, 0.7, 0.55)]
    assert [(row["method"], row["budget"]) for row in rows] == [("unpatched", None), *arms]
    for row in rows:
        assert keys <= row.keys() and all(0 <= row[key] <= 1 for key in keys)
        wanted = 1.0 if row["budget"] is None else float(row["budget"].removeprefix("flops="))
        assert row["flops_share"] == pytest.approx(wanted, abs=0.02)
    assert data["settings"]["task"] == task and data["settings"]["images"] == 8
    assert f"{DENSE_MODELS[task]} on 8 scenes" in output and "At 70% of the compute" in output
    assert {path.name for path in out.iterdir()} == {"tradeoff.png", "predictions.png"}


def test_other_tasks_are_refused(run: Callable[..., str]) -> None:
    with pytest.raises(InvalidValueError, match="unknown task 'depth'; valid: classification, detection, segmentation"):
        run("demo", "--task", "depth")


def test_speed_is_what_the_clock_says(fake_clock: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each forward takes the seconds that the test gives to its model, and the rows say what follows from these."""
    for name, value in (("ROUNDS", 2), ("METHODS", ("random", "pool")), ("BUDGETS", (0.8, 0.6))):
        monkeypatch.setattr(demo, name, value)
    shown = demo.ClassificationDemo(limit=6)
    seconds = [4.0, 2.0, 8.0, 1.0, 32.0]
    fake_clock(dict(zip((lane.model for lane in shown.lanes), seconds, strict=True)))
    parts: list[float] = []
    rows = shown.measure(lambda part, what: parts.append(part))
    assert [row["images_per_second"] for row in rows] == [6 / taken for taken in seconds]
    assert [row["speedup"] for row in rows] == [4.0 / taken for taken in seconds]
    assert rows[1]["speedup"] == 2 and rows[2]["speedup"] == 0.5, "half the time is twice the speed"
    assert parts == sorted(parts) and parts[0] == 0 and parts[-1] == pytest.approx(1)

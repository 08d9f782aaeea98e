"""Runs that are killed at random points lose nothing that was finished, and measure nothing twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tokenreduce.lab.data import fashion_mnist

KILLING = Path(__file__).parents[1] / "killing.py"
TIMED = {
    "median_ms",
    "p90_ms",
    "images_per_second",
    "speedup",
    "speedup_interval",
    "limit_share",
    "plan_us",
    "apply_us",
}
TIMED |= {"peak_memory_mib"}
often = pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.full)])


def killed(command: str, folder: Path, kills: int) -> list[dict[str, Any]]:
    images, _ = fashion_mnist.load("test", fashion_mnist.SUBSET)
    (folder / "images").mkdir()
    for i in range(16):
        Image.fromarray(images[i, 0].numpy()).save(folder / "images" / f"{i}.png")
    call = [sys.executable, str(KILLING), command, str(folder), str(kills)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rounds: list[dict[str, Any]] = json.loads(done.stdout)
    assert sum(one["kills"] for one in rounds) == kills
    return rounds


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """The entries of a journal; a kill inside a line leaves one that is none."""
    entries = []
    for line in path.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries


def check_journal(folder: Path, name: str, kills: int, first: int) -> None:
    """Every measurement is there once, and at most one for each kill was begun without coming to its end."""
    entries = whole_lines(folder / name)
    keys = [entry["key"] for entry in entries]
    assert len(keys) == len(set(keys))
    started = (folder / "started.txt").read_text().count("x")
    finished = len(keys) - first
    assert finished <= started <= finished + kills


def quality(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in TIMED}


@often
def test_a_comparison_keeps_every_finished_row(tmp_path: Path, kills: int) -> None:
    rounds = killed("compare", tmp_path, kills)
    whole = json.loads((tmp_path / "whole" / "rows.json").read_text())
    for one in rounds:
        folder = tmp_path / one["folder"]
        data = json.loads((folder / "rows.json").read_text())
        assert [quality(row) for row in data["rows"]] == [quality(row) for row in whole["rows"]]
        assert data["settings"] == whole["settings"]
        check_journal(folder, "rows.jsonl", one["kills"], first=2)  # the settings and the unpatched model
        kept = [entry["value"] for entry in whole_lines(folder / "rows.jsonl")]
        assert all(row in kept for row in data["rows"] if "dtop" not in row["method"])
        assert (folder / "report.html").read_text().endswith("</html>\n") and not list(folder.glob("*.writing"))


@often
def test_a_calibration_keeps_every_finished_measurement(tmp_path: Path, kills: int) -> None:
    rounds = killed("calibrate", tmp_path, kills)
    whole = (tmp_path / "whole" / "s.json").read_text()
    assert json.loads(whole)["calibration"]["candidates"] > 10
    for one in rounds:
        folder = tmp_path / one["folder"]
        assert (folder / "s.json").read_text() == whole
        check_journal(folder, "s.trials.jsonl", one["kills"], first=0)

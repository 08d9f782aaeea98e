"""What the dense demos draw: the truth, the unpatched model and the reduced one, under their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tokenreduce
from tokenreduce.lab.quality import demo, demo_dense


def test_predictions_stand_under_the_names_of_who_made_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(demo_dense, "draw_predictions", lambda *arguments: drawn.extend(arguments))
    monkeypatch.setattr(demo_dense, "draw_tradeoff", lambda *arguments: None)
    dense = demo_dense.DenseDemo("segmentation", limit=2)
    assert dense.draw([], tmp_path) == [tmp_path / "tradeoff.png", tmp_path / "predictions.png"]
    images, columns, classes, path = drawn
    assert len(images) == 2 and classes == dense.data.classes and path == tmp_path / "predictions.png"
    names = [heading.split("\n")[0] for heading in columns]
    assert names == ["truth", "unpatched", "ward, 70%", "ward, 55%"]
    assert all(heading.endswith(" tokens left") for heading in list(columns)[2:])
    assert all(len(maps) == 2 and all(one.shape == (80, 80) for one in maps) for maps in columns.values())
    agreement = [(columns[name][0] == columns["truth"][0]).float().mean() for name in list(columns)[1:]]
    assert all(0.5 < share < 1 for share in agreement), "trained models, reduced or not, see much of the truth"


def test_the_summary_is_of_the_middle_budget() -> None:
    dense = demo_dense.DenseDemo("segmentation", limit=2)
    rows = [
        {"method": "tome", "budget": "flops=0.85", "miou": 0.9, "change": 0.0},
        {"method": "ward", "budget": "flops=0.7", "miou": 0.6, "change": -0.01},
        {"method": "pool", "budget": "flops=0.7", "miou": 0.5, "change": -0.11},
    ]
    assert dense.summary(rows) == ["At 70% of the compute ward is best: mIoU 60.00%, -1.00 points."]
    assert dense.summary(rows[:1]) == ["No method reaches 70% of the compute."]


def test_every_method_or_a_few_are_shown() -> None:
    few, all_of_them = (
        {lane.arm.method for lane in made.lanes if lane.arm} | {row["method"] for row in made.refused}
        for made in (demo.ClassificationDemo(limit=2), demo.ClassificationDemo(every=True, limit=2))
    )
    assert few == set(demo.METHODS) and all_of_them == set(tokenreduce.methods("encoder"))

"""Sentences and small tables of the docs, and the scripts behind them: from results made up here, and small runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scripts import ROOT, script

from tokenreduce.lab.data import fashion_mnist

sentences, card_tables, calibrate_tables = script("sentences"), script("card_tables"), script("calibrate_tables")
bound_coverage, vlm_positions, shipped_models = map(script, ("bound_coverage", "vlm_positions", "shipped_models"))


def test_what_a_graph_costs_on_large_and_on_small_batches() -> None:
    rows: list[dict[str, Any]] = [
        {"stage": "models", "choice": "auto", "model": model, "batch": batch, "method": method}
        | {"graph_unpatched_us": us, "graph_limit_share": share, "graph_speedup": gain}
        for model, batch, method, us, share, gain in (
            ("vit", 256, "tome", 9000, 0.976, 1.5), ("vit", 32, "tome", 5000, 1.052, 1.4),
            ("vit", 256, "ward", 9000, 1.1, 1.3), ("deit", 1, "tome", 500, 1.04, 1.1),
            ("deit", 1, "ward", 500, 1.4, 0.9), ("deit", 8, "ward", 900, 1.6, 0.99),
        )
    ]  # fmt: skip
    others: list[dict[str, Any]] = [{"stage": "env"}, rows[4] | {"choice": "reference", "method": "evit"}]
    assert sentences.graph({"rows": rows + others}) == (
        "In a graph a method costs, over the same model with as many tokens for nothing, where the unpatched model "
        "takes 5 ms or more: `tome` -2 to 5 % and `ward` 10 %. Where it takes less: `tome` 4 % and `ward` 40 to 60 %. "
        "Slower than unpatched in a graph, too: `ward` on deit at batch 1 and deit at batch 8."
    )


def test_losses_of_dense_tasks_are_of_ward_at_70_percent() -> None:
    def data(change: float) -> dict[str, Any]:
        rows = [{"method": name, "budget": f"flops={share}"} for name in ("ward", "tome") for share in (0.7, 0.5)]
        return {"rows": [{"method": "unpatched"}, *(row | {"change": change * at} for at, row in enumerate(rows, 1))]}

    assert sentences.small_losses(data(-0.00276), data(-0.001841)) == (
        "At 70 % of the compute `ward` loses 0.28 points of mIoU with the bundled segmenter and 0.18 points of AP50 "
        "with the bundled detector."
    )


def test_mutants() -> None:
    assert sentences.mutants({"seed": 3, "killed": 9, "run": 11}) == (
        "The last run, with seed 3, killed 9 of 11 mutants."
    )


def test_the_model_card() -> None:
    models = {
        "fashion_vit": {"images": 10_000, "top1": 0.9084},
        "fashion_vim": {"images": 10_000, "top1": 0.9228},
        "scene_segmenter": {"images": 2000, "miou": 0.721},
        "scene_detector": {"images": 2000, "ap50": 0.874},
        "scene_vlm": {"images": 2000, "questions": 8000, "exact": 0.941, "kinds": {"how many": 0.9, "where": 0.97}},
    }
    made = {marker: text for (_, marker), text in card_tables.tables({"shipped_models": {"models": models}}).items()}
    assert made["fashion_vim"].startswith("Of the 10,000 test photographs it gets **92.28%** right.")
    assert "an mIoU of **72.10%**, and the detector an AP50 of **87.40%**" in made["scenes"]
    assert "**94.1%** are exact, all words right: how many 90.0% and where 97.0%." in made["scene_vlm"]


def test_coverage_of_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small run agrees with the results file, and the bound is above the mean more often than a percentile."""
    data = json.loads((ROOT / "benchmarks/results/bound_coverage.json").read_text())
    monkeypatch.setattr(bound_coverage, "TRIALS", 1000)
    for row in data["rows"][:1] + data["rows"][-1:]:
        found = bound_coverage.coverage(row["sources"], row["spread"])
        assert found["bound"] > found["percentile"]
        assert found == pytest.approx({name: row[name] for name in found}, abs=0.04)  # the deviation is 0.01
    lines = calibrate_tables.coverage({"trials": 1000, "rows": [data["rows"][0] | {"bound": 0.9, "percentile": 0.8}]})
    assert lines.splitlines()[0] == "1,000 draws each:" and lines.splitlines()[-1] == "| 0.5 | 5 | 90.0% | 80.0% |"


def test_positions_are_measured_with_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(vlm_positions, "RESULTS", tmp_path / "made.json")
    monkeypatch.setattr(vlm_positions, "SCENES", 3)
    monkeypatch.setattr(vlm_positions, "METHODS", ("random",))
    monkeypatch.setattr(vlm_positions, "RANDOM_SEEDS", 1)
    monkeypatch.setattr(vlm_positions, "KEEP", 1.0)
    vlm_positions.main()
    [row] = json.loads((tmp_path / "made.json").read_text())["rows"]
    assert row["renumber"] == row["keep"] > 0.5 and row["gain"] == 0  # where nothing leaves both are the same


def test_shipped_models_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped_models, "SCENES", 6)
    said = shipped_models.answers(fashion_mnist.SUBSET)
    assert said["questions"] == 24 and said["exact"] > 0.7 and 0 < sum(said["kinds"].values()) <= len(said["kinds"])
    found = shipped_models.dense("scene_segmenter", "segmentation", "miou", fashion_mnist.SUBSET)
    assert found["images"] == 6 and found["miou"] > 0.3

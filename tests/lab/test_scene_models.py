"""The dense models that ship, and their demo."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import tokenreduce
from tokenreduce.cli import app as application
from tokenreduce.cli import demo_dense
from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.data import scenes
from tokenreduce.lab.data.samples import DenseData
from tokenreduce.lab.quality.dense import measure_dense
from tokenreduce.lab.quality.named import load_dense
from tokenreduce.lab.quality.predictors import load_predictor
from tokenreduce.lab.shipped import scenes as models


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    def invoke(*arguments: object) -> str:
        monkeypatch.setattr("tokenreduce.cli.output.console.width", 200)
        result = CliRunner().invoke(application.app, [str(a) for a in arguments])
        if isinstance(result.exception, Exception):
            raise result.exception
        return result.output

    return invoke


@pytest.mark.parametrize("task", demo_dense.MODELS)
def test_shipped_models_are_useful_whole_and_reduced(task: str) -> None:
    """On few scenes, so with margins; the model card and docs/dense.md have the figures of many."""
    key = demo_dense.HEADLINES[task][0]
    predictor, data = load_predictor(demo_dense.MODELS[task], task), load_dense("scenes", task, limit=150)
    whole, ward, random = measure_dense(predictor, [Arm(m, flops=0.7) for m in ("ward", "random")], data, 50, rounds=2)
    assert whole[key] > 0.65
    assert ward["change"] > -0.02 > random["change"]
    assert (models.ASSETS / f"{demo_dense.MODELS[task]}.safetensors").stat().st_size <= 4e6


@torch.no_grad()
def test_outputs_and_tokens() -> None:
    images = scenes.load(2).images
    segmenter, detector = models.scene_segmenter(), models.scene_detector()
    assert segmenter(scenes.normalise(images)).shape == (2, 11, 80, 80)
    assert {"boxes", "scores", "labels"} == detector(list(images / 255))[0].keys()
    for model in (segmenter, detector):
        tokenreduce.patch(model, "tome", flops=0.7)
        assert tokenreduce.report(model).input_tokens == 256
    assert "dtop" in tokenreduce.compatible(segmenter) and "dtop" not in tokenreduce.compatible(detector)


@torch.no_grad()
def test_the_detector_sees_what_the_transform_of_torchvision_leaves_alone() -> None:
    images = scenes.load(3).images
    detector = models.scene_detector()
    made, _ = detector.transform(list(images / 255))
    assert torch.allclose(made.tensors, scenes.normalise(images), atol=1e-5)


@pytest.mark.parametrize("task", demo_dense.MODELS)
def test_demo(task: str, run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert f"{demo_dense.MODELS[task]} on 8 scenes" in output and "At 70% of the compute" in output
    assert {path.name for path in out.iterdir()} == {"tradeoff.png", "predictions.png"}


def test_wrong_task_and_foreign_data(run: Callable[..., str]) -> None:
    with pytest.raises(InvalidValueError, match="unknown task 'depth'; valid: classification, detection, segmentation"):
        run("demo", "--task", "depth")
    predictor = load_predictor("scene_segmenter", "segmentation")
    with pytest.raises(InvalidValueError, match="know scenes only, not ade20k"):
        predictor.fit(DenseData("ade20k", "segmentation", []))
    assert len(load_dense("scenes", "detection", limit=7)) == 7

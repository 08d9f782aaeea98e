"""The dense models that ship."""

from __future__ import annotations

import pytest
import torch

import tokenreduce
from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.data import scenes
from tokenreduce.lab.data.samples import DenseData
from tokenreduce.lab.quality.demo_dense import HEADLINES
from tokenreduce.lab.quality.dense import measure_dense
from tokenreduce.lab.quality.evaluation import DENSE_MODELS
from tokenreduce.lab.quality.named import load_dense
from tokenreduce.lab.quality.predictors import load_predictor
from tokenreduce.lab.shipped import scenes as models


@pytest.mark.parametrize("task", HEADLINES)
def test_shipped_models_are_useful_whole_and_reduced(task: str) -> None:
    """On few scenes, so with margins; the model card and docs/dense.md have the figures of many."""
    key = HEADLINES[task][0]
    predictor, data = load_predictor(DENSE_MODELS[task], task), load_dense("scenes", task, limit=150)
    whole, ward, random = measure_dense(predictor, [Arm(m, flops=0.7) for m in ("ward", "random")], data, 50, rounds=2)
    assert whole[key] > 0.65
    assert ward["change"] > -0.02 > random["change"]
    assert (models.ASSETS / f"{DENSE_MODELS[task]}.safetensors").stat().st_size <= 4e6


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


def test_shipped_models_refuse_other_data() -> None:
    predictor = load_predictor("scene_segmenter", "segmentation")
    with pytest.raises(InvalidValueError, match="know scenes only, not ade20k"):
        predictor.fit(DenseData("ade20k", "segmentation", []))
    assert len(load_dense("scenes", "detection", limit=7)) == 7

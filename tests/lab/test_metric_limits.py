"""Limits of the metrics: how many detections count, how many draws an interval is made of, which sizes fit."""

from __future__ import annotations

import pytest
import torch
from pycocotools.cocoeval import COCOeval

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.quality import detection
from tokenreduce.lab.quality.dense_metrics import DepthMetric, SegmentationMetric
from tokenreduce.lab.quality.detection import DetectionMetric
from tokenreduce.lab.quality.metric import change_interval


def many(hit: int, count: int) -> dict[str, torch.Tensor]:
    """`count` boxes, surest first; the one at place `hit` (0-based) is the object's."""
    boxes = torch.tensor([[1000.0, 1000.0, 1010.0, 1010.0]]).repeat(count, 1)
    boxes[hit] = torch.tensor([0.0, 0.0, 10.0, 10.0])
    return {"boxes": boxes, "labels": torch.ones(count).long(), "scores": torch.linspace(1, 0.1, count)}


@pytest.mark.parametrize(("place", "precision"), [(99, 1 / 100), (100, 0.0)])
def test_the_hundred_surest_detections_count(place: int, precision: float) -> None:
    metric = DetectionMetric([1])
    target = {"boxes": torch.tensor([[0.0, 0.0, 10.0, 10.0]]), "labels": torch.tensor([1])}
    metric.update([many(place, 101)], [target])
    assert metric.compute()["ap50"] == pytest.approx(precision, abs=1e-9)


def test_figures_of_detection_are_accumulated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    accumulate = COCOeval.accumulate
    monkeypatch.setattr(COCOeval, "accumulate", lambda self: done.append(1) or accumulate(self))
    metric = DetectionMetric([1])
    metric.update([many(0, 3)], [many(0, 1)])
    assert metric.compute() == metric.compute() and metric.compute()["ap50"] == pytest.approx(1) and len(done) == 1


def test_an_interval_is_of_a_thousand_draws_of_one_seed() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = [torch.randint(0, 3, (6, 6), generator=generator) for _ in range(12)]
    guesses = [torch.randint(0, 3, (6, 6), generator=generator) for _ in range(12)]
    reference, metric = SegmentationMetric(3), SegmentationMetric(3)
    reference.update(truth, truth)
    metric.update(guesses, truth)
    assert change_interval(reference, metric) == change_interval(reference, metric, rounds=1000, seed=0)
    assert change_interval(reference, metric) != change_interval(reference, metric, rounds=1000, seed=1)
    assert change_interval(reference, metric) != change_interval(reference, metric, rounds=1001, seed=0)


@pytest.mark.parametrize("metric", [SegmentationMetric(3), DepthMetric()])
def test_a_prediction_of_another_size_is_refused(metric: SegmentationMetric | DepthMetric) -> None:
    with pytest.raises(InvalidValueError, match=r"the prediction is \(4, 6\), the truth \(6, 6\)"):
        metric.update([torch.ones(4, 6).long()], [torch.ones(6, 6).long()])


def test_a_bootstrap_draws_a_hundred_times_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory grows with draws times detections."""
    sizes: list[int] = []
    drawn = detection.drawn_precision
    monkeypatch.setattr(
        detection, "drawn_precision", lambda one, part, *rest: sizes.append(len(part)) or drawn(one, part, *rest)
    )
    metric = DetectionMetric([1])
    metric.update([many(0, 2)], [{"boxes": torch.tensor([[0.0, 0.0, 10.0, 10.0]]), "labels": torch.tensor([1])}])
    metric.resampled(torch.ones(200, 1, dtype=torch.float64))
    assert sizes == [100, 100]

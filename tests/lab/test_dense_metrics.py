"""Metrics of dense tasks against loops over pixels, torchmetrics, pycocotools run as published, and fresh metrics on
every draw of the bootstrap."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.quality.bootstrap import times
from tokenreduce.lab.quality.dense_metrics import ALIGNMENTS, DepthMetric, SegmentationMetric
from tokenreduce.lab.quality.detection import DetectionMetric
from tokenreduce.lab.quality.metric import change_interval

CATEGORIES = [1, 2, 5, 90]


def maps(count: int, seed: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Predictions and truth of different sizes with classes 0 to 3 of 6, class 4 predicted only, and ignored pixels."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(6 + i % 3, 9 - i % 2) for i in range(count)]
    truth = [torch.randint(4, size, generator=generator) for size in sizes]
    predicted = [torch.where(torch.rand(t.shape, generator=generator) < 0.6, t, 4 - t) for t in truth]
    for target in truth:
        target[0, :3] = 255
    return predicted, truth


def scenes(count: int, seed: int) -> tuple[list[dict], list[dict]]:
    """Objects, some of them crowds, and detections: objects moved a little, and boxes anywhere."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    predictions, targets = [], []
    for image in range(count):
        objects = image % 4  # some images have none
        corner = rand(objects, 2) * 60
        boxes = torch.cat([corner, corner + 5 + rand(objects, 2) * 30], 1)
        labels = torch.tensor(CATEGORIES)[torch.randint(3, (objects,), generator=generator)]
        targets.append({"boxes": boxes, "labels": labels, "iscrowd": (rand(objects) < 0.2).long()})
        moved = boxes + 6 * (rand(objects, 4) - 0.5)
        other = torch.cat([rand(4, 2) * 40, 50 + rand(4, 2) * 40], 1)
        classes = torch.tensor(CATEGORIES)[torch.randint(4, (4,), generator=generator)]
        predictions.append(
            {
                "boxes": torch.cat([moved, other]),
                "labels": torch.cat([labels, classes]),
                "scores": torch.cat([0.3 + 0.7 * rand(objects), rand(4)]),
            }
        )
    return predictions, targets


def published(predictions: list[dict], targets: list[dict], folder: Path) -> list[float]:
    """The twelve figures of pycocotools from files, with all its default parameters."""

    def rows(all_boxes: list[dict]) -> list[dict[str, Any]]:
        found = []
        for image, one in enumerate(all_boxes):
            for i, (left, top, right, bottom) in enumerate(one["boxes"].double().tolist()):
                row = {"id": len(found) + 1, "image_id": image, "category_id": int(one["labels"][i])}
                row |= {"bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)}
                row |= {"score": float(one["scores"][i])} if "scores" in one else {"iscrowd": int(one["iscrowd"][i])}
                found.append(row)
        return found

    content = {"images": [{"id": i} for i in range(len(targets))], "annotations": rows(targets)}
    content["categories"] = [{"id": category} for category in CATEGORIES]
    (folder / "truth.json").write_text(json.dumps(content))
    (folder / "found.json").write_text(json.dumps(rows(predictions)))
    truth = COCO(str(folder / "truth.json"))
    evaluation = COCOeval(truth, truth.loadRes(str(folder / "found.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return list(evaluation.stats)


def test_segmentation_counts_pixels() -> None:
    predicted, truth = maps(5, 0)
    metric = SegmentationMetric(6)
    metric.update(predicted[:2], truth[:2])
    metric.update(predicted[2:], truth[2:])
    pairs = [
        (int(p), int(t))
        for a, b in zip(predicted, truth, strict=True)
        for p, t in zip(a.flatten(), b.flatten(), strict=True)
        if t < 255
    ]
    shares = []
    for k in range(6):
        union = sum(k in pair for pair in pairs)
        if union:
            shares.append(sum(pair == (k, k) for pair in pairs) / union)
    assert len(shares) == 5 and metric.images == 5
    figures = metric.compute()
    assert figures.keys() == {"miou", "pixel_accuracy"}
    assert figures["miou"] == pytest.approx(sum(shares) / 5, abs=1e-12)
    assert figures["pixel_accuracy"] == pytest.approx(sum(p == t for p, t in pairs) / len(pairs), abs=1e-12)


def test_segmentation_is_torchmetrics() -> None:
    predicted, truth = maps(4, 1)
    metric = SegmentationMetric(6)
    metric.update(predicted, truth)
    jaccard, accuracy = (
        MulticlassJaccardIndex(6, ignore_index=255),
        MulticlassAccuracy(6, ignore_index=255, average="micro"),
    )
    for p, t in zip(predicted, truth, strict=True):
        jaccard.update(p[None], t[None])
        accuracy.update(p[None], t[None])
    expected = {"miou": float(jaccard.compute()), "pixel_accuracy": float(accuracy.compute())}
    assert metric.compute() == pytest.approx(expected, abs=1e-6)


def test_detection_is_what_pycocotools_publishes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions, targets = scenes(14, 0)
    metric = DetectionMetric(CATEGORIES)
    for i in range(0, 14, 5):
        metric.update(predictions[i : i + 5], targets[i : i + 5])
    figures = metric.compute()
    metric.resampled(torch.ones(2, 14, dtype=torch.double))
    assert capsys.readouterr().out == "" and metric.images == 14
    stats = published(predictions, targets, tmp_path)
    assert figures == pytest.approx({"ap": stats[0], "ap50": stats[1]}, abs=1e-12)
    assert 0.1 < figures["ap"] < figures["ap50"] < 0.95


def test_detection_by_hand() -> None:
    """Two objects of a class; the surest detection hits (IoU 0.6), the next is wrong, the last hits exactly."""
    target = {"boxes": torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]]), "labels": torch.tensor([1, 1])}
    boxes = torch.tensor([[0.0, 0, 10, 6], [50, 50, 60, 60], [20, 20, 30, 30]])
    predicted = {"boxes": boxes, "labels": torch.tensor([1, 1, 1]), "scores": torch.tensor([0.9, 0.8, 0.7])}
    metric = DetectionMetric([1, 2])
    metric.update([predicted], [target])
    # Precision 1 up to recall 1/2 (51 of the 101 recalls), 2/3 beyond; from IoU 0.65 on only the last hit is right.
    easy, hard = (51 + 50 * 2 / 3) / 101, 51 / 3 / 101
    assert metric.compute() == pytest.approx({"ap50": easy, "ap": (3 * easy + 7 * hard) / 10}, abs=1e-9)


def test_detection_without_detections_or_objects() -> None:
    _, targets = scenes(8, 1)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long), "scores": torch.zeros(0)}
    metric = DetectionMetric(CATEGORIES)
    metric.update([nothing] * 8, targets)
    assert metric.compute() == {"ap": 0.0, "ap50": 0.0}
    metric = DetectionMetric(CATEGORIES)
    metric.update([nothing], [targets[0]])
    with pytest.raises(InvalidValueError, match="there is no object in the 1 images to detect; give more images"):
        metric.compute()


def test_depth_by_hand() -> None:
    metric = DepthMetric()
    truth = torch.tensor([[1.0, 2.0], [4.0, 0.0]])
    metric.update([torch.tensor([[1.2, 2.0], [5.2, 77.0]])], [truth])
    assert metric.compute() == pytest.approx(
        {"delta1": 2 / 3, "abs_rel": (0.2 + 0.3) / 3, "rmse": math.sqrt((0.04 + 1.44) / 3)}, rel=1e-6
    )
    metric.update([truth], [truth])  # a perfect image counts as much, however many pixels are known
    assert metric.compute()["delta1"] == pytest.approx((2 / 3 + 1) / 2)


@pytest.mark.parametrize(
    ("undone_by", "distort"),
    [
        ({"none", "median", "affine"}, lambda depth: depth),
        ({"median", "affine"}, lambda depth: 3 * depth),
        ({"affine"}, lambda depth: 5 - 2 * depth),
        ({"inverse"}, lambda depth: 7 / depth + 3),
    ],
)
def test_alignment_undoes_what_it_is_for(undone_by: set[str], distort: Any) -> None:
    torch.manual_seed(0)
    truth = 1 + 4 * torch.rand(8, 9)
    truth[0, :4] = 0  # unknown, whatever was predicted there
    off = {}
    for name in ALIGNMENTS:
        metric = DepthMetric(name)
        metric.update([torch.where(truth > 0, distort(truth), 50)], [truth])
        off[name] = metric.compute()["abs_rel"]
    assert {name for name, value in off.items() if value < 1e-6} == undone_by
    assert all(value > 0.01 for name, value in off.items() if name not in undone_by)


def test_affine_alignment_is_least_squares() -> None:
    torch.manual_seed(0)
    truth, predicted = 2 + torch.rand(6, 7, dtype=torch.float64), torch.rand(6, 7, dtype=torch.float64)
    known = torch.rand(6, 7) < 0.7
    design = torch.stack([predicted[known], torch.ones(int(known.sum()), dtype=torch.float64)], 1)
    solution = torch.linalg.lstsq(design, truth[known][:, None]).solution
    off = (design @ solution)[:, 0] - truth[known]
    metric = DepthMetric("affine")
    metric.update([predicted], [truth * known])
    assert metric.compute()["rmse"] == pytest.approx(float(off.square().mean().sqrt()), rel=1e-9)


def test_depth_is_clipped() -> None:
    metric = DepthMetric(farthest=10.0)
    metric.update([torch.tensor([[1e9, -5.0]])], [torch.tensor([[5.0, 2.0]])])
    assert metric.compute() == pytest.approx(
        {"delta1": 0, "abs_rel": (1 + 1) / 2, "rmse": math.sqrt((25 + 4) / 2)}, rel=2e-3
    )


def pairs_of_metrics() -> list[Any]:
    predicted, truth = maps(12, 2)
    worse, _ = maps(12, 5)
    boxes, targets = scenes(12, 3)
    worse_boxes = [one | {"boxes": one["boxes"] + 2} for one in boxes]
    depth = [1.0 + t.double() % 5 for t in truth]
    near = [torch.where(d < 1.3 + 0.4 * i, d, 2 * d) for i, d in enumerate(depth)]
    far = [torch.where(d < 1.3 + 0.3 * i, d, 2 * d) for i, d in enumerate(depth)]
    worse = [p.clamp(max=3) for p in predicted]
    return [
        (lambda: SegmentationMetric(6), predicted, worse, truth),
        (lambda: DetectionMetric(CATEGORIES), boxes, worse_boxes, targets),
        (DepthMetric, near, far, depth),
    ]


@pytest.mark.parametrize("case", range(3))
def test_a_draw_of_the_bootstrap_is_a_metric_of_these_images(case: int) -> None:
    make, predictions, _, targets = pairs_of_metrics()[case]
    metric = make()
    metric.update(predictions, targets)
    picks = torch.randint(12, (5, 12), generator=torch.Generator().manual_seed(0))
    expected = []
    for row in picks.tolist():
        fresh = make()
        fresh.update([predictions[i] for i in row], [targets[i] for i in row])
        expected.append(fresh.compute()[metric.headline])
    before = metric.compute()
    assert metric.resampled(times(picks, 12)).tolist() == pytest.approx(expected, abs=1e-12)
    assert len({round(value, 6) for value in expected}) > 2
    assert metric.compute() == before, "resampling leaves the metric as it was"
    metric.update(predictions[3:5], targets[3:5])
    assert metric.compute() != before, "and later images still count"


@pytest.mark.parametrize("case", range(3))
def test_interval_of_the_difference(case: int) -> None:
    make, predictions, worse, targets = pairs_of_metrics()[case]
    reference, metric = make(), make()
    reference.update(predictions, targets)
    metric.update(worse, targets)
    low, high = change_interval(reference, metric, rounds=200, seed=1)
    picks = torch.randint(12, (200, 12), generator=torch.Generator().manual_seed(1))
    changes = sorted((metric.resampled(times(picks, 12)) - reference.resampled(times(picks, 12))).tolist())
    assert changes[3] <= low <= changes[6] and changes[-7] <= high <= changes[-4]
    change = metric.compute()[metric.headline] - reference.compute()[metric.headline]
    assert low < high and low - 1e-9 <= change <= high + 1e-9
    assert change_interval(reference, metric, rounds=200, seed=1) == (low, high)
    assert change_interval(reference, reference, rounds=50) == (0.0, 0.0), "pairing leaves no noise"


def test_draws_without_truth_do_not_spoil_the_interval() -> None:
    boxes, targets = scenes(2, 0)
    metric = DetectionMetric(CATEGORIES)
    metric.update(boxes, targets)
    drawn = metric.resampled(times(torch.tensor([[0, 0], [1, 1], [0, 1]]), 2))
    assert drawn.isnan().tolist() == [True, False, False]
    assert change_interval(metric, metric, rounds=20) == (0.0, 0.0)
    depth = DepthMetric()
    depth.update([torch.ones(2, 2)] * 2, [torch.ones(2, 2), torch.zeros(2, 2)])  # nothing is known of the second
    assert depth.resampled(torch.tensor([[1.0, 3], [0, 2]]).double()).nan_to_num(-1).tolist() == [1, -1]


def test_what_cannot_be_measured_is_said() -> None:
    predicted, truth = maps(2, 0)
    one, two = SegmentationMetric(6), SegmentationMetric(6)
    one.update(predicted, truth)
    two.update(predicted[:1], truth[:1])
    with pytest.raises(InvalidValueError, match="of 1 images cannot be compared with a SegmentationMetric of 2"):
        change_interval(one, two)
    with pytest.raises(InvalidValueError, match="rounds is 0 and there are 2 images"):
        change_interval(one, one, rounds=0)
    with pytest.raises(InvalidValueError, match=r"the prediction is \(6, 9\), the truth \(7, 8\)"):
        one.update(predicted[:1], truth[1:])
    with pytest.raises(InvalidValueError, match="unknown alignment 'mean'; valid: affine, inverse, median, none"):
        DepthMetric("mean")
    nothing, depth = SegmentationMetric(6), DepthMetric()
    nothing.update([predicted[0]], [torch.full_like(truth[0], 255)])
    with pytest.raises(InvalidValueError, match="no labelled pixel"):
        nothing.compute()
    depth.update([torch.ones(2, 2)], [torch.zeros(2, 2)])
    with pytest.raises(InvalidValueError, match="no pixel of known depth"):
        depth.compute()

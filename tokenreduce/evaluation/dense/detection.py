"""COCO's average precision of boxes, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenreduce.errors import InvalidValueError
from tokenreduce.evaluation.dense.metrics import DenseMetric

Boxes = dict[str, Tensor]
DETECTIONS = 100  # of an image and category that count
HALF = 0  # IoU 0.5 is the first threshold


class DetectionMetric(DenseMetric):
    """`ap` (mean over IoU 0.50 to 0.95) and `ap50`: objects of all sizes, at most 100 detections of each image and
    category, categories without objects left out, detections on crowds neither right nor wrong.

    Predictions are dicts of `boxes` `(n, 4)` (left, top, right, bottom), `scores` and `labels`; targets of `boxes`,
    `labels` and perhaps `iscrowd`. A resample only accumulates again what pycocotools found for each image.

    Args:
        categories: numbers of the categories, as in the labels.
    """

    headline = "ap50"

    def __init__(self, categories: Sequence[int]) -> None:
        self.categories = sorted(categories)
        self.truth: list[dict[str, Any]] = []
        self.found: list[dict[str, Any]] = []
        self.count = 0
        self._evaluated: Any = None
        self._resampled: tuple[Tensor, Tensor] | None = None  # the last draws: a reference meets the same ones often

    @property
    def images(self) -> int:
        return self.count

    def update(self, predictions: Sequence[Boxes], targets: Sequence[Boxes]) -> None:
        self._evaluated = self._resampled = None
        for predicted, target in zip(predictions, targets, strict=True):
            self.truth += as_entries(target, self.count, len(self.truth))
            self.found += as_entries(predicted, self.count, len(self.found))
            self.count += 1

    def compute(self) -> dict[str, float]:
        if not any(one["iscrowd"] == 0 for one in self.truth):
            raise InvalidValueError(f"there is no object in the {self.count} images to detect; give more images")
        evaluated = self.evaluated()
        return {"ap": precision(evaluated, slice(None)), "ap50": precision(evaluated, slice(HALF, HALF + 1))}

    def resampled(self, picks: Tensor) -> Tensor:
        """NaN for a draw without objects."""
        if self._resampled is None or not torch.equal(self._resampled[0], picks):
            self._resampled = picks, self._resample(picks)
        return self._resampled[1]

    def _resample(self, picks: Tensor) -> Tensor:
        evaluated = self.evaluated()
        results = evaluated.evalImgs  # by category, then by image
        thresholds = evaluated.params.iouThrs
        halves = [at_half(one) for one in results]
        evaluated.params.iouThrs = thresholds[HALF : HALF + 1]
        try:
            figures = []
            for row in picks.tolist():
                starts = range(0, len(halves), self.count)
                evaluated.evalImgs = [halves[start + image] for start in starts for image in row]
                figures.append(precision(evaluated, slice(None)))
        finally:
            evaluated.params.iouThrs, evaluated.evalImgs = thresholds, results
        return torch.tensor(figures, dtype=torch.float64)

    def evaluated(self) -> Any:
        """pycocotools' evaluation of every image; made once."""
        if self._evaluated is None:
            from pycocotools.cocoeval import COCOeval

            with silence():
                truth, found = self._index(self.truth), self._index(self.found)
                evaluation = COCOeval(truth, found, "bbox")
                evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
                evaluation.params.maxDets = [DETECTIONS]
                evaluation.evaluate()
            self._evaluated = evaluation
        return self._evaluated

    def _index(self, entries: list[dict[str, Any]]) -> Any:
        from pycocotools.coco import COCO

        coco = COCO()
        coco.dataset = {
            "images": [{"id": image} for image in range(self.count)],
            "categories": [{"id": category} for category in self.categories],
            "annotations": entries,
        }
        coco.createIndex()
        return coco


def as_entries(boxes: Boxes, image: int, before: int) -> list[dict[str, Any]]:
    """Entries as pycocotools reads them, numbered from `before` + 1: a match with number 0 would be none."""
    corners = boxes["boxes"].double().cpu().view(-1, 4)
    sizes = corners[:, 2:] - corners[:, :2]
    labels = boxes["labels"].tolist()
    columns = {
        "bbox": torch.cat([corners[:, :2], sizes], 1).tolist(),
        "area": sizes.prod(1).tolist(),
        "category_id": labels,
        "score": boxes["scores"].tolist() if "scores" in boxes else [1.0] * len(labels),
        "iscrowd": boxes["iscrowd"].tolist() if "iscrowd" in boxes else [0] * len(labels),
        "id": list(range(before + 1, before + 1 + len(labels))),
    }
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) | {"image_id": image} for row in rows]


def at_half(one: dict[str, Any] | None) -> dict[str, Any] | None:
    """The results of one image and category at IoU 0.5 alone."""
    if one is None:
        return None
    kept = slice(HALF, HALF + 1)
    return one | {"dtMatches": one["dtMatches"][kept], "dtIgnore": one["dtIgnore"][kept]}


def precision(evaluated: Any, thresholds: slice) -> float:
    """Mean over thresholds, recalls and the categories that have objects; NaN where none has."""
    with silence():
        evaluated.accumulate()
    values = evaluated.eval["precision"][thresholds]
    values = values[values > -1]
    return float(np.mean(values)) if values.size else float("nan")


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """pycocotools prints its progress."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield

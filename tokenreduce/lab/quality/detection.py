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
from tokenreduce.lab.quality.dense_metrics import DenseMetric

Boxes = dict[str, Tensor]
DETECTIONS = 100  # of an image and category that count
HALF = 0  # IoU 0.5 is the first threshold
DRAWS = 100  # of a bootstrap at once


class DetectionMetric(DenseMetric):
    """`ap` (mean over IoU 0.50 to 0.95) and `ap50`: objects of all sizes, at most 100 detections of each image and
    category, categories without objects left out, detections on crowds neither right nor wrong.

    Predictions are dicts of `boxes` `(n, 4)` (left, top, right, bottom), `scores` and `labels`; targets of `boxes`,
    `labels` and perhaps `iscrowd`. A resample accumulates again what pycocotools found for each image.

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

    def give(self) -> Any:
        given = {"images": self.count, "truth": self.truth, "found": self.found}
        self.truth, self.found, self.count = [], [], 0
        self._evaluated = self._resampled = None
        return given

    def take_in(self, given: Any) -> None:
        self._evaluated = self._resampled = None
        self.truth += moved(given["truth"], self.count, len(self.truth))
        self.found += moved(given["found"], self.count, len(self.found))
        self.count += given["images"]

    def resampled(self, times: Tensor) -> Tensor:
        """NaN for a draw without objects."""
        if self._resampled is None or not torch.equal(self._resampled[0], times):
            self._resampled = times, self._resample(times)
        return self._resampled[1]

    def _resample(self, times: Tensor) -> Tensor:
        results = self.evaluated().evalImgs  # by category, then by image
        by_category = [results[start : start + self.count] for start in range(0, len(results), self.count)]
        recalls = self.evaluated().params.recThrs
        # In parts: memory grows with draws times detections.
        parts = [
            np.stack([drawn_precision(one, part, recalls) for one in by_category])
            for part in np.array_split(times.numpy(), -(-len(times) // DRAWS))
        ]
        return torch.from_numpy(np.concatenate(parts, 1)).nanmean(0)

    def evaluated(self) -> Any:
        """pycocotools' evaluation of every image, accumulated; made once."""
        if self._evaluated is None:
            from pycocotools.cocoeval import COCOeval

            with silence():
                truth, found = self._index(self.truth), self._index(self.found)
                evaluation = COCOeval(truth, found, "bbox")
                evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
                evaluation.params.maxDets = [DETECTIONS]
                evaluation.evaluate()
                evaluation.accumulate()
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


def moved(entries: Sequence[dict[str, Any]], images: int, before: int) -> list[dict[str, Any]]:
    """Entries with numbers that follow those of `images` images and `before` entries."""
    return [one | {"image_id": one["image_id"] + images, "id": one["id"] + before} for one in entries]


def drawn_precision(results: list[dict[str, Any] | None], times: np.ndarray, recalls: np.ndarray) -> np.ndarray:
    """AP50 `(rounds,)` of a category, NaN without objects: what pycocotools' `accumulate` gives where each image is
    there `times` `(rounds, images)` often, for all draws at once.

    The detections of an image that is drawn twice are equal and follow each other: the precision at the last counts.
    """
    known = [(image, one) for image, one in enumerate(results) if one is not None]
    if not known:
        return np.full(len(times), np.nan)
    objects = np.zeros(len(results))
    objects[[image for image, _ in known]] = [np.count_nonzero(np.asarray(one["gtIgnore"]) == 0) for _, one in known]
    order = np.argsort(-np.concatenate([one["dtScores"] for _, one in known]), kind="mergesort")
    image = np.concatenate([np.full(len(one["dtScores"]), image) for image, one in known]).astype(int)[order]
    hit = np.concatenate([one["dtMatches"][HALF] for _, one in known])[order] != 0
    counts = np.concatenate([one["dtIgnore"][HALF] for _, one in known])[order] == 0
    total = times @ objects
    right = np.cumsum(times[:, image] * (hit & counts), 1)
    wrong = np.cumsum(times[:, image] * (~hit & counts), 1)
    envelope = np.maximum.accumulate((right / (right + wrong + np.spacing(1)))[:, ::-1], 1)[:, ::-1]
    envelope = np.concatenate([envelope, np.zeros((len(times), 1))], 1)  # recalls that are never reached
    with np.errstate(invalid="ignore", divide="ignore"):
        reached = right / total[:, None]
    found = [row[np.searchsorted(recall, recalls)].mean() for row, recall in zip(envelope, reached, strict=True)]
    return np.where(total > 0, found, np.nan)


def precision(evaluated: Any, thresholds: slice) -> float:
    """Mean over thresholds, recalls and the categories that have objects; NaN where none has."""
    values = evaluated.eval["precision"][thresholds]
    values = values[values > -1]
    return float(np.mean(values)) if values.size else float("nan")


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep pycocotools from printing its progress."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield

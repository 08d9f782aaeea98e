"""Metrics of segmentation and depth."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from tokenreduce.errors import InvalidValueError, unknown
from tokenreduce.lab.data.samples import IGNORED
from tokenreduce.lab.quality.metric import Metric

ALIGNMENTS = ("none", "median", "affine", "inverse")
NEAREST = 1e-3  # metres; predictions are clipped to it to keep ratios finite


class DenseMetric(Metric):
    """A metric of a dense task."""

    @abstractmethod
    def update(self, predictions: Sequence[Any], targets: Sequence[Any]) -> None:
        """Take in some images, with one entry an image on either side."""


class SegmentationMetric(DenseMetric):
    """`miou` and `pixel_accuracy` of class maps `(H, W)`; truth 255 does not count, nor do classes that are neither in
    the truth nor predicted.

    Of each image's confusion matrix (torchmetrics) it keeps what these figures are made of.
    """

    headline = "miou"

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.counts: list[Tensor] = []  # (3, classes) an image: pixels that agree, of the truth, predicted

    @property
    def images(self) -> int:
        return len(self.counts)

    def update(self, predictions: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
        for predicted, target in zip(predictions, targets, strict=True):
            check_size(predicted, target)
            matrix = multiclass_confusion_matrix(predicted, target, self.classes, ignore_index=IGNORED)
            self.counts.append(torch.stack([matrix.diagonal(), matrix.sum(1), matrix.sum(0)]).cpu())

    def compute(self) -> dict[str, float]:
        total = torch.stack(self.counts).sum(0)[None] if self.counts else torch.zeros(1, 3, self.classes)
        if not total.any():
            raise InvalidValueError("the images have no labelled pixel to measure on; give more images")
        agree, truth, _ = total[0].sum(-1).tolist()
        return {"miou": float(mean_iou(total)), "pixel_accuracy": agree / truth}

    def give(self) -> Any:
        given, self.counts = [one.tolist() for one in self.counts], []
        return given

    def take_in(self, given: Any) -> None:
        self.counts += [torch.tensor(one, dtype=torch.int64) for one in given]

    def resampled(self, times: Tensor) -> Tensor:
        counts = torch.stack(self.counts).double().flatten(1)
        return mean_iou((times @ counts).view(-1, 3, self.classes))


def check_size(predicted: Tensor, target: Tensor) -> None:
    """Raise unless both are maps of the same size."""
    if predicted.shape != target.shape:
        raise InvalidValueError(
            f"the prediction is {tuple(predicted.shape)}, the truth {tuple(target.shape)}; a predictor gives maps "
            "(H, W) in the size of its images"
        )


def mean_iou(counts: Tensor) -> Tensor:
    """`(rounds,)`: mean over the classes that occur, of `counts` `(rounds, 3, classes)`: pixels that agree, of the
    truth, predicted."""
    agree, truth, predicted = counts.double().unbind(1)
    return (agree / (truth + predicted - agree)).nanmean(-1)


class DepthMetric(DenseMetric):
    """`delta1` (fraction of pixels less than a factor 1.25 off), `abs_rel` and `rmse` (metres) of depth maps `(H, W)`,
    over pixels whose truth is above 0; means of the images' figures, as usual.

    Args:
        align: what is done to each prediction first. "none": it is metres. "median": it is scaled so that medians
            agree. "affine": the a * prediction + b nearest to the depth (least squares). "inverse": the same for
            1 / depth, which is then inverted: for models that predict relative inverse depth, as the relative Depth
            Anything and MiDaS (Ranftl et al., TPAMI 2022, section 5) do.
        farthest: metres that predictions are clipped to; None does not clip.
    """

    headline = "delta1"

    def __init__(self, align: str = "none", farthest: float | None = None) -> None:
        if align not in ALIGNMENTS:
            raise unknown("alignment", align, ALIGNMENTS)
        self.align, self.farthest = align, farthest
        self.figures: list[Tensor] = []  # (3,) an image: delta1, abs_rel, rmse

    @property
    def images(self) -> int:
        return len(self.figures)

    def update(self, predictions: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
        for predicted, target in zip(predictions, targets, strict=True):
            check_size(predicted, target)
            valid = target > 0
            if not predicted[valid].isfinite().all():
                raise InvalidValueError(
                    "a predicted depth is not a finite number; the model overflows: use fp32 or bf16"
                )
            truth = target[valid].double().cpu()
            metres = aligned(predicted[valid].double().cpu(), truth, self.align).clamp(NEAREST, self.farthest)
            ratio = torch.maximum(metres / truth, truth / metres)
            off = metres - truth
            within = (ratio < 1.25).double().mean()
            self.figures.append(torch.stack([within, (off.abs() / truth).mean(), off.square().mean().sqrt()]))

    def compute(self) -> dict[str, float]:
        means = torch.stack(self.figures).nanmean(0) if self.figures else torch.full((3,), torch.nan)
        if means.isnan().any():
            raise InvalidValueError("the images have no pixel of known depth to measure on; give more images")
        return dict(zip(("delta1", "abs_rel", "rmse"), means.tolist(), strict=True))

    def give(self) -> Any:
        given, self.figures = [one.tolist() for one in self.figures], []
        return given

    def take_in(self, given: Any) -> None:
        self.figures += [torch.tensor(one, dtype=torch.float64) for one in given]

    def resampled(self, times: Tensor) -> Tensor:
        within = torch.stack(self.figures)[:, 0]
        known = (~within.isnan()).double()  # images without a pixel of known depth do not count
        return times @ within.nan_to_num() / (times @ known)


def aligned(predicted: Tensor, truth: Tensor, how: str) -> Tensor:
    """Predictions `(n,)` as metres, made to fit the truth `(n,)` as `DepthMetric` says."""
    if how == "none" or truth.numel() == 0:
        return predicted
    if how == "median":
        return predicted * (truth.median() / predicted.median().clamp_min(1e-12))
    wanted = 1 / truth if how == "inverse" else truth
    centred = predicted - predicted.mean()
    variance = centred.square().sum()
    slope = (centred * (wanted - wanted.mean())).sum() / variance if variance > 0 else 0.0
    fitted = wanted.mean() + slope * centred
    # What is fitted beyond infinity is as far away as can be.
    return torch.where(fitted > 0, 1 / fitted, torch.inf) if how == "inverse" else fitted

"""Accuracy of patched models, and how far their features are from those of the unpatched model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from tokenreduce.budget.counting import count_flops
from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.quality.heads import Classify, MakeHead, trained, whole_forward
from tokenreduce.patching.finding import find_backbone, reduction_of
from tokenreduce.patching.reporting import Report
from tokenreduce.patching.verbs import report

Row = dict[str, Any]

DEFINITIONS = (
    "class error and token error: mean of 1 - cosine between the patched and the unpatched model, of the features "
    "before the head and of the final image tokens (all restored)"
)


@dataclass(frozen=True)
class Patched:
    """One method at one budget, as two patched copies of a model.

    `deployed` is patched as users patch: it costs what the row says. `restored` is patched with `restore=True`, so that
    its final tokens can be compared one by one with the unpatched model's; it answers the same.
    """

    method: str
    budget: str
    deployed: Any
    restored: Any


@dataclass(frozen=True)
class Seen:
    """What a model makes of a batch: `logits (B, K)`, `features (B, C)` before the head, image `tokens (B, N, C)`."""

    logits: Tensor
    features: Tensor
    tokens: Tensor


def measure(
    model: Any,
    arms: Sequence[Patched],
    batches: Iterable[tuple[Tensor, Tensor]],
    classes: int,
    make_head: MakeHead = trained,
) -> list[Row]:
    """Compare every arm with the unpatched `model` in one pass over `batches`; the first row is the unpatched model.

    Rows have the keys method, budget, macs, flops_share, tokens_left, top1, top5 (from five classes on), top1_change,
    class_error, token_error and uncounted (operators whose MACs are unknown). MACs are those of one image
    (the mean over images where a method without a budget decides); shares, accuracies and their changes are
    fractions of 1.

    Args:
        batches: images `(B, C, H, W)` and labels `(B,)`, moved to the model's device here.
        classes: number of classes of the labels.
        make_head: how features become logits, one of `heads`; called once for every model.
    """
    device = next(model.parameters()).device
    everyone = [model, *(arm.restored for arm in arms)]
    heads = [make_head(one) for one in everyone]
    scores = [Scores(classes, device) for _ in everyone]
    _, backbone, adapter = find_backbone(model)
    shape = adapter.geometry(backbone)
    example: Tensor | None = None
    for images, labels in batches:
        images, labels = images.to(device), labels.to(device)
        example = images[:1] if example is None else example
        reference = observe(model, heads[0], images, shape.prefix)
        scores[0].update(reference, reference, labels)
        for one, head, score in list(zip(everyone, heads, scores, strict=True))[1:]:
            score.update(observe(one, head, images, shape.prefix), reference, labels)
            if reduction_of(one).adaptive:
                score.update_amount(report(one), len(images))
    if example is None:
        raise InvalidValueError("there are no images to measure on; give at least one batch")
    full: Row = {"method": "unpatched", "budget": None, "tokens_left": shape.count, **cost(model, example)}
    rows = [full, *(arm_row(arm, example) for arm in arms)]
    for arm, row, score in zip(arms, rows[1:], scores[1:], strict=True):
        if reduction_of(arm.deployed).adaptive:  # means over the images: their counts differ
            row |= {
                "macs": round(full["macs"] * float(score.share.compute())),
                "tokens_left": float(score.left.compute()),
            }
    rows = [row | score.row() for row, score in zip(rows, scores, strict=True)]
    macs, top1 = rows[0]["macs"], rows[0]["top1"]
    return [row | {"flops_share": row["macs"] / macs, "top1_change": round(row["top1"] - top1, 6)} for row in rows]


def arm_row(arm: Patched, example: Tensor) -> Row:
    """The head of an arm's row: what it is and what one image costs."""
    counted = cost(arm.deployed, example)
    return {"method": arm.method, "budget": arm.budget, "tokens_left": report(arm.deployed).tokens_left, **counted}


@torch.inference_mode()
def observe(model: Any, head: Classify, images: Tensor, prefix: int) -> Seen:
    """One forward of a model that gives all tokens back, behind `prefix` protected ones."""
    out, features, tokens = whole_forward(model, images)
    return Seen(head(out, features), features, tokens[:, prefix:])


def distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - cosine along the last dimension, in fp32, without the cancellation that would hide small distances."""
    difference = F.normalize(a.float(), dim=-1) - F.normalize(b.float(), dim=-1)
    return difference.square().sum(-1) / 2


class Scores:
    """The running figures of one model."""

    def __init__(self, classes: int, device: torch.device) -> None:
        top = {"top1": 1, "top5": 5} if classes >= 5 else {"top1": 1}
        self.accuracy = {name: MulticlassAccuracy(classes, k, average="micro").to(device) for name, k in top.items()}
        self.class_error, self.token_error = MeanMetric().to(device), MeanMetric().to(device)
        self.share, self.left = MeanMetric().to(device), MeanMetric().to(device)

    def update(self, seen: Seen, reference: Seen, labels: Tensor) -> None:
        for accuracy in self.accuracy.values():
            accuracy.update(seen.logits, labels)
        self.class_error.update(distance(seen.features, reference.features))
        self.token_error.update(distance(seen.tokens, reference.tokens).mean(-1))

    def update_amount(self, seen: Report, images: int) -> None:
        self.share.update(seen.flops_share, images)
        self.left.update(float(seen.tokens_left), images)

    def amount(self, macs: int) -> Row:
        return {"macs": round(macs * float(self.share.compute())), "tokens_left": float(self.left.compute())}

    def row(self) -> Row:
        # torchmetrics divides counts in fp32; six digits are exact for any test set that exists.
        accuracy = {name: round(float(metric.compute()), 6) for name, metric in self.accuracy.items()}
        errors = {"class_error": self.class_error, "token_error": self.token_error}
        return accuracy | {name: float(metric.compute()) for name, metric in errors.items()}


def cost(model: Any, example: Tensor) -> Row:
    """MACs of one image, and the operators that could not be counted."""
    count = count_flops(model, example)
    return {"macs": count.total, "uncounted": count.uncounted}

"""Accuracy of patched models, and how far their features are from those of the unpatched model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.lab.arms import Arm
from tokenreduce.lab.lanes import patched_lane, restored_lane, try_arms
from tokenreduce.lab.quality.distance import distance
from tokenreduce.lab.quality.engine import measure_lanes
from tokenreduce.lab.quality.features import Batch, FeatureLane
from tokenreduce.lab.quality.heads import Classify, MakeHead, trained
from tokenreduce.lab.quality.metric import Metric, as_lists, as_tensors
from tokenreduce.lab.rows import Row
from tokenreduce.lab.shards import Shards


@dataclass(frozen=True)
class Seen:
    """What a model makes of a batch: `logits (B, K)`, `features (B, C)` before the head, image `tokens (B, N, C)`."""

    logits: Tensor
    features: Tensor
    tokens: Tensor


class ClassificationMetric(Metric):
    """`top1`, `top5` (from five classes on), `class_error` and `token_error`; `figures` holds those of each image."""

    headline = "top1"

    def __init__(self, classes: int) -> None:
        self.top = (1, 5) if classes >= 5 else (1,)
        self.parts: list[dict[str, Tensor]] = []

    @property
    def images(self) -> int:
        return sum(len(part["top1"]) for part in self.parts)

    @property
    def figures(self) -> dict[str, Tensor]:
        """Each figure of each image, `(images,)` float64."""
        return {name: torch.cat([part[name] for part in self.parts]) for name in self.parts[0]}

    def update(self, seen: Seen, reference: Seen, labels: Tensor) -> None:
        """Take in a batch: what the model and what the unpatched model make of it, and the truth `(B,)`."""
        right = seen.logits.topk(self.top[-1]).indices == labels[:, None]
        figures = {f"top{k}": right[:, :k].any(1) for k in self.top}
        figures["class_error"] = distance(seen.features, reference.features)
        figures["token_error"] = distance(seen.tokens, reference.tokens).mean(-1)
        self.parts.append({name: values.double().cpu() for name, values in figures.items()})

    def compute(self) -> dict[str, float]:
        means = {name: float(values.mean()) for name, values in self.figures.items()}
        return means | {f"top{k}": round(means[f"top{k}"], 6) for k in self.top}

    def give(self) -> Any:
        given, self.parts = [as_lists(part) for part in self.parts], []
        return given

    def take_in(self, given: Any) -> None:
        self.parts += map(as_tensors, given)

    def resampled(self, times: Tensor) -> Tensor:
        return times @ self.figures["top1"] / times.sum(1)


class ClassificationLane(FeatureLane):
    """A lane that also answers.

    Args:
        make_head: how features become logits; called with `restored` before the first batch.
    """

    metric: ClassificationMetric

    def __init__(
        self,
        arm: Arm | None,
        model: Any,
        restored: Any,
        unpatched: ClassificationLane | None,
        classes: int,
        make_head: MakeHead = trained,
    ) -> None:
        super().__init__(arm, model, restored, unpatched, ClassificationMetric(classes))
        self.make_head = make_head

    @cached_property
    def head(self) -> Classify:
        """How this model's features become logits."""
        return self.make_head(self.restored)

    def take(self, batch: Batch, reference: Seen | None) -> Seen:
        images, labels = self.placed(batch)
        out, features, tokens = self.look(images)
        seen = Seen(self.head(out, features), features, tokens)
        self.metric.update(seen, reference or seen, labels)
        return seen


def classification_lanes(
    model: nn.Module, arms: Sequence[Arm], classes: int, make_head: MakeHead = trained
) -> tuple[list[ClassificationLane], list[Row]]:
    """The lane of the unpatched model and one for each arm that it can reach, and rows of the refused arms.

    Raises: ValueError if there are arms and none can be reached.
    """
    full = ClassificationLane(None, model, model, None, classes, make_head)

    def lane(arm: Arm) -> ClassificationLane:
        deployed = patched_lane(model, arm)
        return ClassificationLane(arm, deployed, restored_lane(model, arm), full, classes, make_head)

    made, refused = try_arms(arms, lane)
    return [full, *(one for _, one in made)], refused


def measure_classification(
    lanes: Sequence[ClassificationLane],
    batches: Iterable[Batch] | Shards,
    tell: Callable[[int], object] = lambda done: None,
) -> list[Row]:
    """The rows of `lanes`, of which the first is unpatched; see `measure`."""
    rows = measure_lanes(lanes, batches, tell=tell)
    return [row | {"top1_change": round(row.pop("change"), 6)} for row in rows]


def measure(
    model: nn.Module,
    arms: Sequence[Arm],
    batches: Iterable[Batch],
    classes: int,
    make_head: MakeHead = trained,
    *,
    tell: Callable[[int], object] = lambda done: None,
) -> list[Row]:
    """Compare every arm with the unpatched `model` in one pass over `batches`; the first row is the unpatched model.

    Rows have the keys method, budget, options (arguments besides the budget), macs, flops_share, tokens_left, top1,
    top5 (from five classes on), top1_change, class_error, token_error and uncounted (operators whose MACs are unknown).
    MACs are those of one image (the mean over images where a method without a budget decides); shares, accuracies and
    their changes are fractions of 1. Last come rows with the reason (`refused`) for each arm that the model cannot
    reach.

    Args:
        batches: images `(B, C, H, W)` and labels `(B,)`, moved to the model's device here.
        classes: number of classes of the labels.
        make_head: how features become logits, one of `heads`; called once for every model.
        tell: called before each batch with the number of images that are done.

    Raises: ValueError if there are no images, or the model can reach no arm.
    """
    lanes, refused = classification_lanes(model, arms, classes, make_head)
    return measure_classification(lanes, batches, tell) + refused

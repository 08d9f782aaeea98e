"""The one way to measure quality: every model sees every batch, and a row says what each of them loses and saves.

Classification and the dense tasks bring lanes of their own; what a lane has seen is kept in its metric.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.quality.metric import Metric, change_interval
from tokenreduce.lab.rows import Progress, Row
from tokenreduce.patching.finding import find_backbone, reduction_of
from tokenreduce.patching.verbs import report


class Lane(ABC):
    """One model of a comparison, and what it has done so far.

    Args:
        arm: how the model is reduced; None for the unpatched model.
        model: patched as the arm says; what it costs goes into the row.
        metric: takes in what the model makes of each batch.
    """

    def __init__(self, arm: Arm | None, model: nn.Module, metric: Metric) -> None:
        self.arm, self.model, self.metric = arm, model, metric
        self.adaptive = arm is not None and reduction_of(model).adaptive
        self.first: Any = None  # the first batch
        self.amounts: list[tuple[int, float, float]] = []  # of an adaptive method: images, their MACs and tokens left

    @abstractmethod
    def take(self, batch: Any, reference: Any) -> Any:
        """Run on a batch and score it; of an adaptive method also `note` the amounts.

        `reference` is what the unpatched lane returned for the same batch (None in that lane itself).
        """

    @abstractmethod
    def count(self, batch: Any) -> Row:
        """`macs` of the first image of a batch, and the operators that could not be counted (`uncounted`)."""

    def show(self, batch: Any, reference: Any = None) -> Any:
        """Take a batch in; returns what the other lanes need as `reference`."""
        self.first = batch if self.first is None else self.first
        with torch.inference_mode():
            return self.take(batch, reference)

    def note(self, images: int, macs: float, tokens_left: float) -> None:
        """Remember what an adaptive method left of each of `images` images."""
        self.amounts.append((images, macs, tokens_left))

    @cached_property
    def cost(self) -> Row:
        """MACs, uncounted operators and, where something is patched, tokens left of the first image."""
        counted = self.count(self.first)
        return counted if self.arm is None else {"tokens_left": report(self.model).tokens_left, **counted}

    def row(self) -> Row:
        """What the model is and costs: the first image, or the mean over images where an adaptive method decides."""
        names = (None, None) if self.arm is None else (self.arm.method, self.arm.budget)
        row = {"method": names[0] or "unpatched", "budget": names[1], **self.cost}
        if self.amounts:
            images, macs, left = torch.tensor(self.amounts, dtype=torch.float64).unbind(1)
            total = images.sum()
            row |= {"macs": round(float(images @ macs / total)), "tokens_left": float(images @ left / total)}
        return row


def measure_lanes(
    lanes: Sequence[Lane],
    batches: Iterable[Any],
    *,
    rounds: int = 0,
    seed: int = 0,
    tell: Callable[[int], object] = lambda done: None,
) -> list[Row]:
    """Show all batches to all lanes, the unpatched one first; a row for each.

    Rows have the keys method, budget, macs, uncounted, tokens_left, flops_share, the figures of the metric and
    `change`, that of the metric's headline; with rounds also `change_interval`, its 95 % interval by `rounds` draws of
    a paired bootstrap. `tell` is called before each batch with the number of images that are done.

    Raises: ValueError if there are no batches.
    """
    for batch in batches:
        tell(lanes[0].metric.images)
        reference = lanes[0].show(batch)
        for lane in lanes[1:]:
            lane.show(batch, reference)
    if lanes[0].first is None:
        raise InvalidValueError("there are no images to measure on; give at least one batch")
    rows = [lane.row() | lane.metric.compute() for lane in lanes]
    rows[0]["tokens_left"] = tokens_entered(lanes)
    full, headline = rows[0], lanes[0].metric.headline
    for lane, row in zip(lanes, rows, strict=True):
        row |= {"flops_share": row["macs"] / full["macs"], "change": row[headline] - full[headline]}
        if rounds:
            row["change_interval"] = change_interval(lanes[0].metric, lane.metric, rounds, seed)
    return rows


def tokens_entered(lanes: Sequence[Lane]) -> int:
    """Image tokens of the first image before any reduction, as a patched lane has just seen it."""
    if len(lanes) > 1:
        return report(lanes[1].model).input_tokens
    _, backbone, adapter = find_backbone(lanes[0].model)
    return adapter.geometry(backbone).count


def teller(progress: Progress | None, images: int) -> Callable[[int], object]:
    """What tells `progress` how many of `images` images are done."""
    if progress is None:
        return lambda done: None
    return lambda done: progress(done / images, f"{images} images")

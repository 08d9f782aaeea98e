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
from tokenreduce.lab.shards import Found, Shards
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

    def give(self) -> Any:
        """What it has seen so far, as JSON, for `take_in` of the same lane in another process; it is forgotten here."""
        given = {"metric": self.metric.give(), "amounts": self.amounts}
        self.amounts = []
        return given

    def take_in(self, given: Any) -> None:
        """Add what the same lane has seen elsewhere."""
        self.metric.take_in(given["metric"])
        self.amounts += [(int(images), macs, left) for images, macs, left in given["amounts"]]

    @cached_property
    def cost(self) -> Row:
        """MACs, uncounted operators and, where something is patched, tokens left of the first image."""
        counted = self.count(self.first)
        return counted if self.arm is None else {"tokens_left": report(self.model).tokens_left, **counted}

    def row(self) -> Row:
        """What the model is and costs: the first image, or the mean over images where an adaptive method decides."""
        names = (None, None) if self.arm is None else (self.arm.method, self.arm.budget)
        options = {} if self.arm is None else self.arm.options
        row = {"method": names[0] or "unpatched", "budget": names[1], "options": options, **self.cost}
        if self.amounts:
            images, macs, left = torch.tensor(self.amounts, dtype=torch.float64).unbind(1)
            total = images.sum()
            row |= {"macs": round(float(images @ macs / total)), "tokens_left": float(images @ left / total)}
        return row


def measure_lanes(
    lanes: Sequence[Lane],
    batches: Iterable[Any] | Shards,
    *,
    rounds: int = 0,
    seed: int = 0,
    tell: Callable[[int], object] = lambda done: None,
) -> list[Row]:
    """Show all batches to all lanes, the unpatched one first; a row for each.

    Rows have the keys method, budget, options (arguments besides the budget), macs, uncounted, tokens_left,
    flops_share, the figures of the metric and `change`, that of the metric's headline; with rounds also
    `change_interval`, its 95 % interval by `rounds` draws of a paired bootstrap. `tell` is called before each batch
    with the number of images that are done. All processes that share `batches` get the rows, and the metrics of the one
    that leads hold all images.

    Raises: ValueError if there are no batches.
    """
    if isinstance(batches, Shards):
        entered = show_shards(lanes, batches, tell)
        return batches.team.once(lambda: make_rows(lanes, entered, rounds, seed))
    for batch in batches:
        tell(lanes[0].metric.images)
        show_all(lanes, batch)
    if lanes[0].first is None:
        raise InvalidValueError("there are no images to measure on; give at least one batch")
    return make_rows(lanes, None, rounds, seed)


def show_all(lanes: Sequence[Lane], batch: Any) -> None:
    """Show a batch to all lanes."""
    reference = lanes[0].show(batch)
    for lane in lanes[1:]:
        lane.show(batch, reference)


def make_rows(lanes: Sequence[Lane], entered: int | None, rounds: int, seed: int) -> list[Row]:
    """The rows of lanes that have seen all images; `entered` image tokens enter (None: they are asked)."""
    rows = [lane.row() | lane.metric.compute() for lane in lanes]
    rows[0]["tokens_left"] = tokens_entered(lanes) if entered is None else entered
    full, headline = rows[0], lanes[0].metric.headline
    for lane, row in zip(lanes, rows, strict=True):
        row |= {"flops_share": row["macs"] / full["macs"], "change": row[headline] - full[headline]}
        if rounds:
            row["change_interval"] = change_interval(lanes[0].metric, lane.metric, rounds, seed)
    return rows


def show_shards(lanes: Sequence[Lane], shards: Shards, tell: Callable[[int], object]) -> int:
    """Show all batches to all lanes, with the other processes of the team; the lanes of the one that leads then have
    seen all. Returns the image tokens that enter.

    What a lane costs is counted on the first image. Which process has that is known at the end, so each counts its own.
    """
    seen = 0

    def take(batch: Any, found: Found) -> None:
        nonlocal seen
        tell(seen * shards.team.size)
        show_all(lanes, batch)
        if seen == 0:
            found |= {"costs": [lane.cost for lane in lanes], "entered": tokens_entered(lanes)}
        seen += lanes[0].metric.images
        found["lanes"] = [lane.give() for lane in lanes]

    found = shards.work(take)
    return shards.team.once(lambda: take_in_all(lanes, found, shards))


def take_in_all(lanes: Sequence[Lane], found: Sequence[Found], shards: Shards) -> int:
    """The lanes take in what came of all batches, in order; returns the image tokens that enter."""
    read = [one for one in found if "lanes" in one]
    if not read:
        reasons = list(shards.left_out)
        raise InvalidValueError(
            f"none of the {len(reasons)} images can be read; the first: {reasons[0]}"
            if reasons
            else "there are no images to measure on; give at least one batch"
        )
    first = next(one for one in read if "costs" in one)
    for number, lane in enumerate(lanes):
        lane.cost = first["costs"][number]
        for one in read:
            lane.take_in(one["lanes"][number])
    return first["entered"]


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

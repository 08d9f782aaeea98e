"""The unpatched model of many comparisons, which runs once on each batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tokenreduce.lab.quality.engine import Lane
from tokenreduce.lab.rows import Row


class KeptLane(Lane):
    """Shows what `lane` saw of a batch again, where the same batch comes again.

    Batches are told apart by their identity, so they must stay in memory.
    """

    def __init__(self, lane: Lane) -> None:
        super().__init__(None, lane.model, lane.metric)
        self.lane = lane
        self._seen: dict[int, tuple[Tensor, Any]] = {}  # the images are held: no others can have their identity

    def take(self, batch: Any, reference: Any) -> Any:
        images = batch[0]
        if id(images) not in self._seen:
            self._seen[id(images)] = images, self.lane.show(batch)
        return self._seen[id(images)][1]

    def count(self, batch: Any) -> Row:
        return self.lane.count(batch)

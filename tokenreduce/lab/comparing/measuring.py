"""One row of a comparison: quality on all images and speed on one batch, of one method at one budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.comparing.kept import KeptLane
from tokenreduce.lab.comparing.reading import Images, read_images
from tokenreduce.lab.quality.features import Batch
from tokenreduce.lab.quality.loading import Loaded
from tokenreduce.lab.rows import Row
from tokenreduce.lab.speed import compare

TIMED = (
    *("median_ms", "p90_ms", "images_per_second", "speedup", "speedup_interval", "limit_share"),
    *("peak_memory_mib", "plan_us", "apply_us"),
)


@dataclass(frozen=True)
class Speed:
    """How speed is measured: interleaved rounds of the patched model, the unpatched one and the limit.

    Args:
        batch_size: images in a forward.
        rounds: every model has one turn in each.
        min_time: seconds that a turn lasts at least.
    """

    batch_size: int = 8
    rounds: int = 10
    min_time: float = 0.1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.rounds < 1 or self.min_time < 0:
            raise InvalidValueError(f"{self}: batch_size and rounds are 1 or more, min_time is not negative")


@dataclass(frozen=True)
class Bench:
    """What all rows share.

    Args:
        loaded: model, images and head.
        images: those that could be read.
        kept: the unpatched model, if the images are in memory.
        speed: None measures none.
        timed: the batch whose forward is timed, `(B, ...)`.
        meaning: what the figures mean, in a sentence.
        told: settings of the head.
    """

    loaded: Loaded
    images: Images
    kept: KeptLane | None
    speed: Speed | None
    timed: Tensor
    meaning: str
    told: dict[str, Any]


def make_bench(loaded: Loaded, speed: Speed | None) -> Bench:
    """Read the images, and what the unpatched model will be compared by.

    Raises: ValueError if no image can be read.
    """
    count = speed.batch_size if speed else 1
    images = read_images(loaded, count)
    place = next(loaded.network.parameters()).device
    timed = images.first[torch.arange(count) % len(images.first)].to(place)  # few images are taken again
    judge = loaded.judge([])
    kept = KeptLane(judge.lanes[0]) if images.kept else None
    return Bench(loaded, images, kept, speed, timed, judge.meaning, judge.told)


def measure_row(bench: Bench, arm: Arm, tell: Callable[[int], object] = lambda done: None) -> tuple[Row, Row]:
    """The row of the unpatched model and that of `arm`, which is `refused` with the reason if the model cannot run it.

    Quality is measured as `eval` does, on all images of the bench; speed as `bench` does, interleaved with the
    unpatched model. `tell` gets the number of images that are done.
    """
    try:
        judge = bench.loaded.judge([arm])
    except InvalidValueError as error:
        return {}, {"method": arm.method, "budget": arm.budget, "options": arm.options, "refused": str(error)}
    lanes = list(judge.lanes)
    if bench.kept is not None:
        lanes[0], lanes[1].unpatched = bench.kept, bench.kept.lane
    rows: list[Row] = judge.measure(lanes, telling(bench.images.batches, tell))
    if (speed := bench.speed) is not None:
        timed = compare(bench.loaded.network, bench.timed, [arm], rounds=speed.rounds, min_time=speed.min_time)
        for row, times in zip(rows, timed, strict=True):
            row |= {key: times[key] for key in TIMED}
    return rows[0], rows[1]


def telling(batches: Iterable[Batch], tell: Callable[[int], object]) -> Iterator[Batch]:
    """The batches; before each `tell` gets the number of images that came before. (The unpatched lane cannot say so: in
    later rows it has seen them all.)"""
    done = 0
    for batch in batches:
        tell(done)
        done += len(batch[0])
        yield batch

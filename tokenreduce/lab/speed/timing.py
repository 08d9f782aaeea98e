"""Interleaved timing: every round runs every lane, so that what slows the machine for a while slows them all."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Call = Callable[[], object]


@dataclass(frozen=True)
class Times:
    """Seconds of every forward of one lane, round by round."""

    rounds: tuple[tuple[float, ...], ...]

    @property
    def median(self) -> float:
        """Median over all forwards, in seconds."""
        return quantile([seconds for turn in self.rounds for seconds in turn], 0.5)

    @property
    def p90(self) -> float:
        """The time that nine of ten forwards stay below, in seconds."""
        return quantile([seconds for turn in self.rounds for seconds in turn], 0.9)

    def ratios(self, other: Times) -> list[float]:
        """This lane's time over the other's, round by round, each the median of its turn."""
        turns = zip(self.rounds, other.rounds, strict=True)
        return [statistics.median(mine) / statistics.median(theirs) for mine, theirs in turns]


def interleave(
    lanes: Mapping[str, Call],
    rounds: int,
    min_time: float,
    synchronize: Call,
    tick: Callable[[str], object] = lambda name: None,
) -> dict[str, Times]:
    """Time every lane in every round, in rotating order so that no lane is always first.

    Args:
        lanes: what to time, by name; warmed up before the first round.
        min_time: seconds a turn lasts at least; fast lanes run several times a turn.
        synchronize: waits for the device, before and after each forward.
        tick: called with the lane's name after its warm-up and after each turn.
    """
    repeats = {}
    for name, call in lanes.items():
        repeats[name] = max(1, math.ceil(min_time / _warm_up(call, synchronize)))
        tick(name)
    turns: dict[str, list[tuple[float, ...]]] = {name: [] for name in lanes}
    names = list(lanes)
    for turn in range(rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            turns[name].append(tuple(seconds(lanes[name], synchronize) for _ in range(repeats[name])))
            tick(name)
    return {name: Times(tuple(lane)) for name, lane in turns.items()}


def seconds(call: Call, synchronize: Call) -> float:
    """Wall-clock seconds of one call, the device's work included."""
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - start


def synchronizer(device: torch.device) -> Call:
    """A function that waits until `device` has done its work."""
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)


def bootstrap_interval(values: Sequence[float], level: float = 0.95, draws: int = 2000) -> tuple[float, float]:
    """Percentile bootstrap interval of the median of `values`; the same values give the same interval."""
    generator = torch.Generator().manual_seed(0)
    sample = torch.tensor(values, dtype=torch.float64)
    drawn = sample[torch.randint(len(values), (draws, len(values)), generator=generator)]
    medians = drawn.quantile(0.5, dim=1).tolist()
    return quantile(medians, (1 - level) / 2), quantile(medians, (1 + level) / 2)


def quantile(values: Sequence[float], q: float) -> float:
    """Linearly interpolated quantile."""
    return float(torch.tensor(values, dtype=torch.float64).quantile(q))


def _warm_up(call: Call, synchronize: Call, calls: int = 3) -> float:
    """Seconds of the fastest of a few first calls."""
    return min(seconds(call, synchronize) for _ in range(calls))

"""`Clock`: how long candidates take, as shares of the unpatched model's time, each measured once."""

from __future__ import annotations

import platform
import statistics
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.lab.arms import Arm
from tokenreduce.lab.environment import place_name
from tokenreduce.lab.journal import digest
from tokenreduce.lab.lanes import patched_lane
from tokenreduce.lab.search.trials import Candidate, Trials
from tokenreduce.lab.speed.timing import bootstrap_interval, interleave, synchronizer

QUICK, SURE = 5, 15  # rounds: to find where it pays to measure, and of what is decided and told
MIN_TIME = 0.05


@dataclass(frozen=True)
class TimeShare:
    """Median over rounds of the patched model's time over the unpatched model's, with its bootstrap 95 % interval."""

    share: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        return f"{self.share:.3f} ({self.interval[0]:.3f} to {self.interval[1]:.3f})"


def time_share(base: nn.Module, patched: nn.Module, batch: Tensor, rounds: int) -> TimeShare:
    """Time both in rounds in which they take turns."""
    with torch.inference_mode():
        lanes = {"unpatched": partial(base, batch), "patched": partial(patched, batch)}
        times = interleave(lanes, rounds, MIN_TIME, synchronizer(batch.device))
    ratios = times["patched"].ratios(times["unpatched"])
    return TimeShare(statistics.median(ratios), bootstrap_interval(ratios))


class Clock:
    """Times candidates on one batch, `(B, C, H, W)`; finished measurements are in the journal of `trials`."""

    def __init__(self, trials: Trials, batch: Tensor) -> None:
        self.trials, self.batch = trials, batch
        self.threads, self.place = torch.get_num_threads(), place_name(batch.device)
        machine = [platform.node(), self.place, self.threads, list(batch.shape), str(batch.dtype)]
        self._about = ["time", *trials.about, machine]

    def time(self, candidate: Candidate, rounds: int) -> TimeShare:
        """The candidate's share of the unpatched model's time."""
        facts = {**candidate.to_json(), "schedule": candidate.schedule.to_json(), "rounds": rounds}
        key = digest(*self._about, self.trials.code(candidate.variant.method), facts)
        found = self.trials.journal.get(key)
        if found is None:
            arm = Arm(candidate.variant.method, schedule=candidate.schedule, **candidate.variant.options)
            timed = time_share(self.trials.base, patched_lane(self.trials.base, arm), self.batch, rounds)
            found = [timed.share, *timed.interval]
            self.trials.journal.add(key, found, candidate.to_json() | {"rounds": rounds})
        self.trials.tell(f"time of {candidate.variant}", rounds * len(self.batch))
        return TimeShare(found[0], (found[1], found[2]))

    def about(self, asked: float, found: TimeShare) -> dict[str, Any]:
        """What a file says of a measured time."""
        return {
            "asked": asked,
            "share": round(found.share, 4),
            "interval95": [round(end, 4) for end in found.interval],
            "rounds": SURE,
            "device": self.place,
            "threads": self.threads,
            "batch_size": len(self.batch),
        }

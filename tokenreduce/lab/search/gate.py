"""Whether errors are smaller than others, how sure that is, and how many images it would need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenreduce.lab.quality.bootstrap import draw

ROUNDS = 4000
LEAST = 5  # sources: of fewer, even if all agree, chance explains it more than once in twenty times
FLOOR = 1e-7  # of an error: below it single precision rounds
# Quantiles of the normal distribution: 95 and 99 % sure, found four times of five.
SURE, SURER, POWER = 1.645, 2.326, 0.842
# A schedule of its own has to lose a tenth less: on DINOv2 choices with bounds of 0.92 to 0.98 lost more elsewhere.
WORTH = 0.9
# That one kind of error alone is smaller 32 sources can hardly show; that it is not a tenth larger they can.
NO_WORSE = 1.1


@dataclass(frozen=True)
class Ratio:
    """How errors compare with those of the default: 1 is the same, smaller is better.

    `interval` is of a bootstrap over sources, 90 %: its upper end is a one-sided 95 % bound.
    """

    mean: float
    interval: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        return {"ratio": round(self.mean, 4), "interval90": [round(end, 4) for end in self.interval]}

    def __str__(self) -> str:
        return f"{self.mean:.2f} ({self.interval[0]:.2f} to {self.interval[1]:.2f})"


@dataclass(frozen=True)
class Evidence:
    """A comparison on images that chose nothing.

    Args:
        overall: geometric mean of the next two, what candidates are ranked by.
        bound: a one-sided 99 % bound of it. A wrong choice stays, a missed one only keeps the default.
        of_means: ratio of the mean errors, the geometric mean of those of each kind of error.
        geometric: geometric mean over images and kinds of the ratio of the errors.
        kinds: these two for each kind of error.
        sources: number of independent sources, which the bootstrap draws from.
        needed: the most sources that one of these ratios needs to be shown four times of five; None where no number of
            sources would show it.
    """

    overall: Ratio
    bound: float
    of_means: Ratio
    geometric: Ratio
    kinds: dict[str, tuple[Ratio, Ratio]]
    sources: int
    needed: int | None

    @property
    def better(self) -> bool:
        """Whether the overall ratio is below `WORTH` with 99 % confidence, on enough sources, and no kind of error
        pays for it: the mean of its two ratios is below 1, and image by image it is below `NO_WORSE` with 95 %."""
        each = all(
            means.mean * geometric.mean < 1 and geometric.interval[1] < NO_WORSE
            for means, geometric in self.kinds.values()
        )
        return self.sources >= LEAST and self.bound < WORTH and each

    def to_json(self) -> dict[str, Any]:
        kinds = {
            name: {"of_means": means.to_json(), "geometric": geometric.to_json()}
            for name, (means, geometric) in self.kinds.items()
        }
        return {
            "sources": self.sources,
            "overall": self.overall.to_json() | {"bound99": round(self.bound, 4)},
            "of_means": self.of_means.to_json(),
            "geometric": self.geometric.to_json(),
            "kinds": kinds,
            "sources_needed": self.needed,
        }


def score(errors: Tensor, default: Tensor) -> float:
    """What candidates are ranked by, the smaller the better, 0 for the default: mean of the logarithms of both ratios.

    One alone would follow a few hard images, or overlook them. Errors are `(images, kinds)`.
    """
    logs = (errors + FLOOR).log() - (default + FLOOR).log()
    means = (errors.mean(0) + FLOOR).log() - (default.mean(0) + FLOOR).log()
    return float((logs.mean() + means.mean()) / 2)


def compare(errors: Tensor, default: Tensor, sources: Sequence[int], kinds: Sequence[str]) -> Evidence:
    """Compare errors `(images, kinds)` of the same images; `sources` numbers where each image comes from."""
    groups = torch.tensor(sources)
    many = int(groups.max()) + 1

    def summed(values: Tensor) -> Tensor:
        return values.new_zeros(many, values.shape[1]).index_add_(0, groups, values)

    picks = torch.cat([torch.ones(1, many, dtype=torch.float64), draw(many, ROUNDS)])  # the first is of all, once
    logs = (errors + FLOOR).log() - (default + FLOOR).log()
    sizes = picks @ summed(torch.ones_like(logs[:, :1]))
    geometric = picks @ summed(logs) / sizes
    means = (picks @ summed(errors + FLOOR)).log() - (picks @ summed(default + FLOOR)).log()
    each = {name: (ratio(means[:, i], many), ratio(geometric[:, i], many)) for i, name in enumerate(kinds)}
    of_means, average = means.mean(1), geometric.mean(1)
    both = (of_means + average) / 2
    below = math.log(NO_WORSE)
    needed = [sources_needed(both - math.log(WORTH), many, SURER)]
    needed += [sources_needed(one - below, many) for one in geometric.unbind(1)]
    known = [one for one in needed if one is not None]
    most = max(known) if len(known) == len(needed) and bool((means[0] + geometric[0] < 0).all()) else None
    bound = float(both[1:].quantile(1 - tail(many, SURER)).exp())
    return Evidence(ratio(both, many), bound, ratio(of_means, many), ratio(average, many), each, many, most)


def ratio(logs: Tensor, sources: int) -> Ratio:
    """Of logarithms `(1 + rounds,)`, the first of which is of all sources."""
    rare = tail(sources)
    low, high = logs[1:].quantile(torch.tensor([rare, 1 - rare], dtype=logs.dtype)).exp().tolist()
    return Ratio(math.exp(logs[0]), (low, high))


def tail(sources: int, z: float = SURE) -> float:
    """The share of the bootstrap's draws beyond a one-sided bound, by default of 95 %: 0.05 of many sources, less of
    few, which a bootstrap makes too narrow (Hesterberg, arXiv 1411.5279, expanded percentile). Of 5 it is 0.009."""
    free = max(1, sources - 1)
    # The quantile of Student's t, from that of the normal distribution (Abramowitz and Stegun 26.7.5).
    t = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * free**3)
    return 0.5 * math.erfc(t * math.sqrt((free + 1) / free) / math.sqrt(2))


def sources_needed(logs: Tensor, sources: int, sure: float = SURE) -> int | None:
    """How many sources would show that the first of these logarithms `(1 + rounds,)`, of so many, is below 0, if it is
    what it seems; the others are of a bootstrap."""
    if sources < 2 or logs[0] >= 0:
        return None
    return max(LEAST, math.ceil(sources * ((sure + POWER) * float(logs[1:].std() / logs[0])) ** 2))


def upper_bound(errors: Tensor, sources: Sequence[int]) -> Tensor:
    """A one-sided 95 % bound of the mean error of each kind, `(kinds,)`, by a bootstrap-t over sources.

    Of few sources with skewed errors it is above the true mean a little less often, and a percentile bootstrap clearly
    less (docs/calibrate.md; `benchmarks/bound_coverage.py` measures both).
    """
    groups = torch.tensor(sources)
    many = int(groups.max()) + 1

    def summed(values: Tensor) -> Tensor:
        return values.new_zeros(many, values.shape[1]).index_add_(0, groups, values)

    sums, sizes = summed(errors), summed(torch.ones_like(errors[:, :1]))
    picks = torch.cat([torch.ones(1, many, dtype=torch.float64), draw(many, ROUNDS)])  # the first is of all, once
    size = picks @ sizes
    means = picks @ sums / size
    # Squares of what each source adds to the mean, sum - mean * size, expanded so that no draw needs a loop.
    squares = picks @ sums**2 - 2 * means * (picks @ (sums * sizes)) + means**2 * (picks @ sizes**2)
    spread = (squares.clamp_min(0) * many / max(1, many - 1)).sqrt() / size
    shifts = (means[1:] - means[0]) / spread[1:].maximum(FLOOR * means[1:] + FLOOR**2)
    return means[0] - spread[0] * shifts.quantile(0.05, dim=0)

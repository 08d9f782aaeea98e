"""The most compute that a time allows: found by measuring, as time falls in stairs where tokens become fewer."""

from __future__ import annotations

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.search.bars import LEVELS, At
from tokenreduce.lab.search.clocking import QUICK, SURE, Clock, TimeShare
from tokenreduce.lab.search.trials import Candidate

NEIGHBOURS = 2  # levels above the one found that are tried too
STEPS = 6  # levels below it, where the first measurement was lucky


def most_compute(clock: Clock, latency: float, at: At) -> tuple[Candidate, TimeShare] | None:
    """The candidate at the highest level whose time, measured in many rounds, is at most `latency`; None if none is."""
    last = lowest_reachable(at)
    if last is None or not quick(clock, latency, at, last):
        return None
    low, high = 0, last  # LEVELS[high] fits
    while low < high:
        middle = (low + high) // 2
        if quick(clock, latency, at, middle):
            high = middle
        else:
            low = middle + 1
    above = [level for level in range(max(0, high - 1 - NEIGHBOURS), high) if quick(clock, latency, at, level)]
    return settle(clock, latency, at, min([*above, high]), last)


def settle(clock: Clock, latency: float, at: At, first: int, last: int) -> tuple[Candidate, TimeShare] | None:
    """The first of the levels `first`, `first` + 1 ... that is fast enough in many rounds."""
    for level in range(first, min(last, first + STEPS, len(LEVELS) - 1) + 1):
        try:
            candidate = at(LEVELS[level])
        except InvalidValueError:
            return None
        found = clock.time(candidate, SURE)
        if found.share <= latency:
            return candidate, found
    return None


def quick(clock: Clock, latency: float, at: At, level: int) -> bool:
    """Whether the candidate at this level seems fast enough."""
    return clock.time(at(LEVELS[level]), QUICK).share <= latency


def lowest_reachable(at: At) -> int | None:
    """The last level that the layers can reach; what they cannot reach is below it."""
    low, high = -1, len(LEVELS) - 1
    while low < high:
        middle = (low + high + 1) // 2
        try:
            at(LEVELS[middle])
        except InvalidValueError:
            high = middle - 1
        else:
            low = middle
    return None if low < 0 else low


def level_of(share: float) -> int:
    """The level that is at or just below a share of the multiply-adds."""
    return next((place for place, level in enumerate(LEVELS) if level <= share + 1e-6), len(LEVELS) - 1)

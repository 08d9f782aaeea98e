"""The least compute whose error is below a bar, with confidence."""

from __future__ import annotations

from collections.abc import Callable

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.search.gate import LEAST, upper_bound
from tokenreduce.lab.search.parting import Parts
from tokenreduce.lab.search.trials import Candidate, Trials

LEVELS = tuple(percent / 100 for percent in range(98, 20, -2))  # shares of the multiply-adds, in the order of testing
At = Callable[[float], Candidate]  # a method and its shape at a share of the multiply-adds


def lowest(trials: Trials, parts: Parts, error: float, at: At) -> float:
    """The level at which the mean errors on the images that choose come to the bar: where it pays to search."""
    low, high = 0, len(LEVELS) - 1
    while low < high:  # LEVELS[low] is thought to pass
        middle = (low + high + 1) // 2
        passed = _try(at, LEVELS[middle])
        if passed is not None and bool((trials.errors(passed, parts.choose).mean(0) <= error).all()):
            low = middle
        else:
            high = middle - 1
    return LEVELS[low]


def descend(trials: Trials, parts: Parts, error: float, at: At, budget: str = "flops") -> Candidate:
    """The candidate at the last level, from the highest down, before the upper bound of an error crosses the bar.

    As the levels and their order are fixed, the first failure ends the test and each pass holds with 95 % confidence.

    Raises: ValueError if none passes.
    """
    if len(set(parts.sources)) < LEAST:
        raise InvalidValueError(
            f"error={error} is checked on {len(set(parts.sources))} sources; a bound needs {LEAST} at least: give more "
            f"images, or {budget}="
        )
    passed, bound = None, None
    for level in LEVELS:
        candidate = _try(at, level)
        if candidate is None:
            break
        bound = upper_bound(trials.errors(candidate, parts.check), parts.sources)
        if bool((bound > error).any()):
            break
        passed = candidate
    if passed is None:
        seen = "" if bound is None else f", where the bound is {float(bound.max()):.2g}"
        raise InvalidValueError(
            f"error={error} is not kept with confidence even at {budget}={LEVELS[0]}{seen}; allow a greater error, or "
            "give more images"
        )
    return passed


def _try(at: At, level: float) -> Candidate | None:
    try:
        return at(level)
    except InvalidValueError:  # these layers cannot save as much
        return None

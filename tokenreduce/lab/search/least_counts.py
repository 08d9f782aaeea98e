"""The fewest tokens of each layer with which an error stays small, after G-Search (arXiv 2412.00556), and what holds of
them on prompts that chose nothing."""

from __future__ import annotations

from collections.abc import Sequence

from tokenreduce.budget.spreading import Counts
from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.search.bars import LEVELS, At, descend
from tokenreduce.lab.search.calibration import Calibration
from tokenreduce.lab.search.curves import Found
from tokenreduce.lab.search.searching import Search
from tokenreduce.lab.search.trials import Candidate, Trials, Variant


class LeastSearch(Search):
    """A search in which `below` finds counts layer by layer, and not the level of a default."""

    def below(self, trials: Trials, error: float) -> Calibration:
        [variant] = self.variants
        parts, layers = self.parts, trials.depth * trials.tokens.bit_length()
        self.start(layers * parts.count(parts.choose) + len(LEVELS) // 2 * parts.count(parts.check))
        curve = least_counts(trials, variant, error, self.parts.choose)

        def shaped(share: float) -> Candidate:
            return trials.own(variant, share) if curve is None else trials.shaped(variant, curve, share)

        at: At = shaped
        chosen = descend(trials, self.parts, error, at, "keep")
        return self.result(trials, chosen, False, self.bounds(error, "prompts"), None, chosen)


def least_counts(trials: Trials, variant: Variant, error: float, batches: Sequence[int]) -> Found | None:
    """From the first layer to the last, the fewest tokens with which the mean error is at most `error` if later layers
    keep as many. None if none may leave. It is the best if errors only grow as fewer tokens are left."""
    now = trials.tokens
    left: list[int] = []
    for layer in range(trials.depth):
        few, most = 0, now  # `few` is too few, or none
        while most - few > 1:
            middle = (few + most) // 2
            counts: Counts = (*left, *[middle] * (trials.depth - layer))
            few, most = (few, middle) if _holds(trials, variant, counts, error, batches) else (middle, most)
        now = most
        left.append(now)
    return Found(tuple(count / trials.tokens for count in left)) if now < trials.tokens else None


def _holds(trials: Trials, variant: Variant, counts: Counts, error: float, batches: Sequence[int]) -> bool:
    try:
        return bool((trials.errors(trials.counted(variant, counts), batches).mean(0) <= error).all())
    except InvalidValueError:  # the layer or the method cannot
        return False

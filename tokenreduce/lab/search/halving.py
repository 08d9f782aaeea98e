"""Successive halving: all candidates run on few images, the better ones on more, the best on all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tokenreduce.lab.search.gate import score
from tokenreduce.lab.search.trials import Candidate, Trials

FINAL = 4  # candidates that run on all images
KEPT = 4  # of so many candidates one goes on


class Ranked(NamedTuple):
    score: float
    candidate: Candidate


def rounds(batches: Sequence[int]) -> list[list[int]]:
    """The batches of each round: a quarter, half, all of them."""
    counts = sorted({max(1, len(batches) // 4), max(1, len(batches) // 2), len(batches)})
    return [list(batches[:count]) for count in counts]


def survivors(count: int, stages: int) -> list[int]:
    """How many candidates run in each of so many rounds."""
    kept = [count]
    for _ in range(stages - 1):
        kept.append(min(kept[-1], max(FINAL, kept[-1] // KEPT)))
    return kept


def rank(trials: Trials, default: Candidate, candidates: Sequence[Candidate], batches: Sequence[int]) -> list[Ranked]:
    """The candidates by their score on these batches, the best first; earlier ones first among equals."""
    errors = trials.errors(default, batches)
    ranked = [Ranked(score(trials.errors(one, batches), errors), one) for one in candidates]
    return sorted(ranked, key=lambda one: one.score)


def halve(trials: Trials, default: Candidate, candidates: Sequence[Candidate], batches: Sequence[int]) -> list[Ranked]:
    """The candidates that came to the last round, by their score on all `batches`."""
    stages = rounds(batches)
    ranked = [Ranked(0.0, one) for one in candidates]
    for some, count in zip(stages, survivors(len(candidates), len(stages)), strict=True):
        ranked = rank(trials, default, [one.candidate for one in ranked[:count]], some)
    return ranked

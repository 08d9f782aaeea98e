"""Counts layer by layer, after G-Search (Accelerating Multimodal LLMs by Searching Optimal Vision Token Reduction,
CVPR 2025, arXiv 2412.00556), whose form for a budget is ours."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tokenreduce.budget.spreading import Counts
from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.search.curves import Found
from tokenreduce.lab.search.gate import score
from tokenreduce.lab.search.trials import Candidate, Trials, Variant

KEEPS = (0.7, 0.8, 0.85, 0.9, 0.95)  # of the tokens that enter a layer, the fewest first


def greedy(trials: Trials, variant: Variant, default: Candidate, batches: Sequence[int]) -> Found | None:
    """From the first layer to the last, the fewest tokens with which the error stays within its allowance.

    Later layers keep what is left. The allowance grows linearly from layer to layer, to the error of the default in the
    last one. None if it allows nothing.
    """
    reference = trials.errors(default, batches)
    now = trials.tokens
    left: list[int] = []
    for layer in range(trials.depth):
        allowed = reference * (layer + 1) / trials.depth
        for keep in KEEPS:
            counts: Counts = (*left, *[max(1, int(now * keep))] * (trials.depth - layer))
            if counts[layer] < now and _fits(trials, variant, counts, batches, allowed):
                now = counts[layer]
                break
        left.append(now)
    return Found(tuple(count / trials.tokens for count in left)) if now < trials.tokens else None


def _fits(trials: Trials, variant: Variant, counts: Counts, batches: Sequence[int], allowed: Tensor) -> bool:
    try:
        return score(trials.errors(trials.counted(variant, counts), batches), allowed) <= 0
    except InvalidValueError:  # the layer or the method cannot
        return False

"""Smooth shapes of a schedule: which share of the tokens each layer leaves, scaled by one number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from tokenreduce.budget.spreading import Counts, Walk, bisect
from tokenreduce.errors import InvalidValueError
from tokenreduce.forward.reduction import Reduction


class Curve(Protocol):
    """A shape: `shares` of the tokens that are left after each layer when `last` of them is left at the end."""

    def shares(self, depth: int, last: float) -> Sequence[float]: ...

    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Power:
    """Shares whose power `lam` falls linearly from layer `start` up to, not including, layer `end`.

    lam = 1 removes the same count everywhere, 0.5 lets the square root fall linearly, 0 keeps the same ratio
    everywhere, and below 0 most tokens go in the first layers.
    """

    lam: float
    start: int
    end: int

    def shares(self, depth: int, last: float) -> list[float]:
        def share(layer: int) -> float:
            done = min(max(layer - self.start + 1, 0), self.end - self.start) / (self.end - self.start)
            if self.lam == 0:
                return float(last**done)
            return float((1 - (1 - last**self.lam) * done) ** (1 / self.lam))

        return [share(layer) for layer in range(depth)]

    def to_json(self) -> dict[str, Any]:
        return {"family": "power", "lam": self.lam, "start": self.start, "end": self.end}


@dataclass(frozen=True)
class Sigmoid:
    """Shares that fall most around the fraction `middle` of the depth, over a stretch of `width` of the depth."""

    middle: float
    width: float

    def shares(self, depth: int, last: float) -> list[float]:
        def height(layer: int) -> float:
            return 1 / (1 + math.exp(-((layer + 0.5) / depth - self.middle) / self.width))

        first, final = height(-1), height(depth - 1)
        return [1 - (1 - last) * (height(layer) - first) / (final - first) for layer in range(depth)]

    def to_json(self) -> dict[str, Any]:
        return {"family": "sigmoid", "middle": self.middle, "width": self.width}


@dataclass(frozen=True)
class Found:
    """Shares that a search over the layers found; all are raised to one power to meet a budget."""

    found: tuple[float, ...]

    def shares(self, depth: int, last: float) -> list[float]:
        power = math.log(last) / math.log(min(self.found))
        return [share**power for share in self.found]

    def to_json(self) -> dict[str, Any]:
        return {"family": "greedy", "shares": [round(share, 6) for share in self.found]}


def grid(depth: int) -> list[Curve]:
    """The shapes that are always tried."""
    starts = sorted({0, max(1, depth // 12), depth // 4})
    ends = sorted({depth * 3 // 4, depth * 10 // 12, depth} - {0})
    curves: list[Curve] = [
        Power(lam, start, end) for lam in (1, 0.5, 0, -1) for start in starts for end in ends if start < end
    ]
    return curves + [Sigmoid(middle, width) for middle in (0.2, 0.4, 0.6) for width in (0.1, 0.25)]


def resolve(curve: Curve, reduction: Reduction, n: int, flops: float) -> Counts:
    """The greatest counts of this shape, for `n` image tokens, that cost at most `flops` of the unpatched MACs.

    Raises: ValueError if the shape or the method cannot save as much.
    """
    shape, rehearsal = reduction.geometry, reduction.rehearsal(n)
    least = partial(reduction.reducer.least_of, grid=shape.grid)
    walk = Walk(n, shape.depth, least, shape.needs_all, reduction.full_layers)

    def counts(amount: float) -> Counts:
        shares = curve.shares(shape.depth, max(1 - amount, 0.5 / n))
        return walk.counts(lambda layer, now: max(1, round(n * shares[layer])))

    lowest = reduction.share(n, counts(1.0), rehearsal)
    if lowest > flops:
        raise InvalidValueError(f"{curve} reaches flops={lowest:.3f} at least; ask for more than flops={flops}")
    enough, _ = bisect(lambda amount: reduction.share(n, counts(amount), rehearsal) <= flops)
    return counts(enough)

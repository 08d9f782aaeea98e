"""Break-even: the number of image tokens from which a reduced model is faster at batch 1, by measurements that ship
with the library."""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHIPPED = Path(__file__).parent / "break_even.json"
FARTHEST = 2.0  # no curve stands for widths that differ from its own by more than this factor


@dataclass(frozen=True)
class Curve:
    """Speedups of one method at one backbone width and batch 1; `lows` are the lower ends of their intervals.

    `tokens` are the measured counts of image tokens, fewest first; the other two have one value for each.
    """

    width: int
    method: str
    tokens: tuple[int, ...]
    speedups: tuple[float, ...]
    lows: tuple[float, ...]

    @property
    def break_even(self) -> int | None:
        """The smallest measured count at which the whole interval lies above 1, as at all larger counts; None if the
        largest count does not pay."""
        slow = [i for i, low in enumerate(self.lows) if low <= 1]
        first = slow[-1] + 1 if slow else 0
        return self.tokens[first] if first < len(self.tokens) else None

    def pays(self, tokens: int) -> bool | None:
        """Whether reducing so many tokens pays; None if that is not known.

        Beyond the measured counts: more tokens pay if the largest count pays, fewer do not if the smallest does not.
        """
        if self.break_even is None:
            return False if tokens <= self.tokens[-1] else None
        if tokens < self.tokens[0] and self.break_even == self.tokens[0]:
            return None
        return tokens >= self.break_even

    def speedup_at(self, tokens: int) -> float | None:
        """Interpolated over the logarithm of the tokens; None outside of the measured counts."""
        if not self.tokens[0] <= tokens <= self.tokens[-1]:
            return None
        right = bisect_left(self.tokens, tokens)
        if self.tokens[right] == tokens:
            return self.speedups[right]
        (a, b), (low, high) = self.tokens[right - 1 : right + 1], self.speedups[right - 1 : right + 1]
        return low + (high - low) * math.log(tokens / a) / math.log(b / a)


def curves_of(rows: list[dict[str, Any]]) -> list[Curve]:
    """One curve for each width and method of `rows` with the keys width, method, tokens, speedup and
    speedup_interval."""
    found: dict[tuple[int, str], list[tuple[int, float, float]]] = {}
    for row in rows:
        point = (row["tokens"], row["speedup"], row["speedup_interval"][0])
        found.setdefault((row["width"], row["method"]), []).append(point)
    return [Curve(*key, *zip(*sorted(points), strict=True)) for key, points in found.items()]


def nearest_curve(width: int, method: str) -> Curve | None:
    """The shipped curve of `method` whose width is nearest by ratio; None if none is near."""

    def distance(curve: Curve) -> float:
        return max(curve.width / width, width / curve.width)

    near = [curve for curve in shipped_curves() if curve.method == method and distance(curve) <= FARTHEST]
    return min(near, key=distance, default=None)


def shipped_curves() -> list[Curve]:
    """What was measured for this version of the library."""
    return curves_of(json.loads(SHIPPED.read_text())["rows"])

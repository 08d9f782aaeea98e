"""Which row is best for a budget, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tokenreduce.lab.rows import Row

LEAST = 1e-9


def loss(row: Row) -> float:
    """What rows are ranked by: the geometric mean of class and token error, as `calibrate` ranks candidates."""
    return math.sqrt((row["class_error"] + LEAST) * (row["token_error"] + LEAST))


def measured(rows: Sequence[Row]) -> list[Row]:
    """The rows of patched models that ran."""
    return [row for row in rows if row["method"] != "unpatched" and "refused" not in row]


def best_of(rows: Sequence[Row], share: float) -> Row | None:
    """The row that loses least among those that need at most this share of the multiply-adds."""
    within = [row for row in measured(rows) if row["flops_share"] <= share + 0.005]
    return min(within, key=loss, default=None)


def sentence(row: Row) -> str:
    """What one row loses and saves."""
    errors = f"class error {row['class_error']:.2g}, token error {row['token_error']:.2g}"
    accuracy = "" if "top1" not in row else f", top-1 {row['top1']:.1%} ({100 * row['top1_change']:+.1f} points)"
    low = None if "speedup" not in row else row["speedup_interval"][0]
    faster = "" if low is None else f", {row['speedup']:.2f} times as fast{'' if low > 1 else ' (not surely faster)'}"
    return f"{row['method']} loses least: {errors}{accuracy}{faster}"


def answers(rows: Sequence[Row], budgets: Sequence[float]) -> list[str]:
    """A sentence for each budget, and one if nothing is faster here."""
    found = [(share, best_of(rows, share)) for share in budgets]
    said = [f"At {share:.0%} of the multiply-adds {sentence(row)}." for share, row in found if row is not None]
    timed = [row for row in measured(rows) if "speedup" in row]
    if timed and all(row["speedup"] < 1 for row in timed):
        said.append("Every method is slower than the unpatched model: on this machine reduction does not pay.")
    return said

"""A picture of right answers against what is kept of each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def draw_keep_curves(rows: Sequence[Mapping[str, Any]], path: str | Path, title: str = "") -> None:
    """Write the picture that `keep_curves` makes."""
    keep_curves(rows, title).savefig(path, dpi=120)


def keep_curves(rows: Sequence[Mapping[str, Any]], title: str = "") -> Any:
    """A matplotlib figure with two axes, exact answers against `keep` and against the cache's share: one line for each
    method, dashes for the unpatched model, the 95 % interval of `random` in grey.

    Args:
        rows: with the keys method, exact, kv_share and, where tokens left, keep; fractions of 1.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    methods = list(dict.fromkeys(row["method"] for row in rows if "keep" in row))
    for axis, key, name in zip(
        figure.subplots(1, 2, sharey=True),
        ("keep", "kv_share"),
        ("tokens kept of each image, %", "keys and values in the cache, % of the unpatched model"),
        strict=True,
    ):
        for number, method in enumerate(methods):
            some = sorted((row for row in rows if row["method"] == method), key=lambda row: row[key])
            at, heights = [100 * row[key] for row in some], [100 * row["exact"] for row in some]
            if method == "random":
                axis.plot(at, heights, color="black", linewidth=2, marker="s", label=method, zorder=5)
                low, high = zip(*(row["exact_interval"] for row in some), strict=True)
                axis.fill_between(at, [100 * x for x in low], [100 * x for x in high], color="black", alpha=0.12)
            else:
                style = ("-", "--", ":")[number // 10 % 3]
                colour = colormaps["tab10"](number % 10)
                axis.plot(at, heights, style, color=colour, marker="o", markersize=4, label=method)
        for row in rows:
            if row["method"] == "unpatched":
                label = f"unpatched, {row['exact']:.1%}"
                axis.axhline(100 * row["exact"], color="black", linestyle="--", linewidth=1, label=label)
        axis.set(xlabel=name)
        axis.grid(alpha=0.3)
    axis.figure.axes[0].set_ylabel("exact answers, %")
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure

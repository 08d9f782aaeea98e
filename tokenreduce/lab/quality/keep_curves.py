"""A picture of right answers against what is kept of each image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
AXES: dict[str, Callable[[Row], float]] = {
    "tokens kept of each image, %": lambda row: 100 * float(row["budget"].removeprefix("keep=")),
    "keys and values in the cache, % of the unpatched model": lambda row: 100 * row["kv_share"],
}


def draw_keep_curves(rows: Sequence[Row], path: str | Path, title: str = "") -> None:
    """Write the picture that `keep_curves` makes."""
    keep_curves(rows, title).savefig(path, dpi=120)


def keep_curves(rows: Sequence[Row], title: str = "") -> Any:
    """A matplotlib figure with two axes, exact answers against `keep` and against the cache's share: one line for each
    method, dashes for the unpatched model, the 95 % interval of `random` in grey.

    Args:
        rows: with the keys method, budget ("keep=0.1", but of the unpatched model), exact, exact_interval and
            kv_share; fractions of 1.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (name, place) in zip(axes, AXES.items(), strict=True):
        _lines(axis, [row for row in rows if row["method"] != "unpatched"], place)
        for row in rows:
            if row["method"] == "unpatched":
                label = f"unpatched, {row['exact']:.1%}"
                axis.axhline(100 * row["exact"], color="black", linestyle="--", linewidth=1, label=label)
        axis.set(xlabel=name)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("exact answers, %")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def _lines(axis: Any, rows: Sequence[Row], place: Callable[[Row], float]) -> None:
    """One line for each method."""
    from matplotlib import colormaps

    for number, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        some = sorted((row for row in rows if row["method"] == method), key=place)
        at, heights = [place(row) for row in some], [100 * row["exact"] for row in some]
        if method == "random":
            axis.plot(at, heights, color="black", linewidth=2, marker="s", label=method, zorder=5)
            low, high = zip(*(row["exact_interval"] for row in some), strict=True)
            axis.fill_between(at, [100 * x for x in low], [100 * x for x in high], color="black", alpha=0.12)
        else:
            style, colour = ("-", "--", ":")[number // 10 % 3], colormaps["tab10"](number % 10)
            axis.plot(at, heights, style, color=colour, marker="o", markersize=4, label=method)

"""The interactive plots of a comparison, as plotly.js takes them: dicts of `data` and `layout`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenreduce.lab.comparing.choosing import loss, measured
from tokenreduce.lab.rows import COLUMNS, Row, from_file

# Okabe and Ito's colours, which people tell apart who do not see all of them; beyond these, other marks.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7f7f7f")
MARKS = ("circle", "square", "diamond", "cross", "triangle-up")
SHOWN = 8  # methods that are drawn at first; a click in the legend shows the others
COMPUTE, TIME = "multiply-adds, % of the unpatched model", "time, % of the unpatched model"
HOVER = ("budget", "flops_share", "tokens_left", "top1", "class_error", "token_error", "speedup")


def figures(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Plots with `title`, `about` (what it shows, in a sentence), `data` and `layout`."""
    found = [plot(rows, "flops_share", key, COMPUTE) for key in ("token_error", "class_error")]
    if "top1" in rows[0]:
        found.append(plot(rows, "flops_share", "top1", COMPUTE))
    if "speedup" in rows[0]:
        found.append(plot(rows, "time_share", "token_error", TIME))
        found.append(plot(rows, "flops_share", "time_share", COMPUTE))
    return found


def plot(rows: Sequence[Row], across: str, up: str, heading: str) -> dict[str, Any]:
    """One key of the rows over another, a line for each method."""
    ran, log = measured(rows), up.endswith("_error")
    names = {"time_share": TIME, "top1": "top-1 accuracy, %"}
    title = " over ".join(name.split(",")[0] for name in (names.get(up, up.replace("_", " ")), heading))
    lines = [row for row in ran if not from_file(row)]
    least = {method: min(loss(row) for row in lines if row["method"] == method) for method in methods_of(lines)}
    first = sorted(least, key=lambda method: least[method])[:SHOWN]
    data = [trace(lines, method, place, across, up, method in first) for place, method in enumerate(least)]
    data += calibrated(ran, across, up)
    if not log:
        ends = [value(row, across) for row in ran] + [100.0]
        level = {"x": [min(ends), max(ends)], "y": [value(rows[0], up)] * 2, "name": "unpatched", "mode": "lines"}
        data.append({"type": "scatter", **level, "line": {"dash": "dash", "color": "#7f7f7f"}, "hoverinfo": "y+name"})
    axis = {"title": {"text": names.get(up, up.replace("_", " "))}, "type": "log" if log else "linear"}
    layout = {"xaxis": {"title": {"text": heading}}, "yaxis": axis | {"exponentformat": "power"}, "height": 420}
    layout |= {"margin": {"l": 60, "r": 10, "t": 10, "b": 50}, "hovermode": "closest", "legend": {"font": {"size": 11}}}
    about = f"{title}, for {len(least)} methods; the same figures are in the table."
    return {"title": title, "about": about, "data": data, "layout": layout}


def methods_of(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in rows))


def trace(rows: Sequence[Row], method: str, place: int, across: str, up: str, shown: bool) -> dict[str, Any]:
    """The line of one method through its budgets."""
    own = sorted((row for row in rows if row["method"] == method), key=lambda row: value(row, across))
    mark = {"symbol": MARKS[place // len(COLOURS) % len(MARKS)], "size": 9, "color": COLOURS[place % len(COLOURS)]}
    line = {"type": "scatter", "mode": "lines+markers", "name": method, "marker": mark, "line": {"width": 1.5}}
    return line | points(own, across, up) | ({} if shown else {"visible": "legendonly"})


def calibrated(rows: Sequence[Row], across: str, up: str) -> list[dict[str, Any]]:
    """A star for each schedule that came from a file."""
    stars = [row for row in rows if from_file(row)]
    mark = {"symbol": "star", "size": 16, "color": "#f0e442", "line": {"width": 1, "color": "#000000"}}
    star = {"type": "scatter", "mode": "markers", "name": "calibrated", "marker": mark}
    return [star | points(stars, across, up)] if stars else []


def points(rows: Sequence[Row], across: str, up: str) -> dict[str, Any]:
    """Where the rows are, what is shown beside the pointer, and the interval of measured times."""
    found: dict[str, Any] = {"x": [value(row, across) for row in rows], "y": [value(row, up) for row in rows]}
    found |= {"text": [hover(row) for row in rows], "hovertemplate": "%{text}<extra></extra>"}
    for axis, key in (("error_x", across), ("error_y", up)):
        if key == "time_share":
            ends = [sorted(100 / end for end in row["speedup_interval"]) for row in rows]
            middle = [value(row, key) for row in rows]
            below = [max(0.0, at - low) for at, (low, _) in zip(middle, ends, strict=True)]
            above = [max(0.0, high - at) for at, (_, high) in zip(middle, ends, strict=True)]
            found[axis] = {"type": "data", "array": above, "arrayminus": below, "thickness": 1, "width": 2}
    return found


def value(row: Row, key: str) -> float:
    """As it is drawn: shares and accuracies in per cent."""
    if key == "time_share":
        return 100 / float(row["speedup"])
    return float(row[key]) * (100 if key in ("flops_share", "top1") else 1)


def hover(row: Row) -> str:
    known = [(COLUMNS[key][0], COLUMNS[key][1](row[key])) for key in HOVER if row.get(key) is not None]
    return "<br>".join([f"<b>{row['method']}</b>", *(f"{heading}: {shown}" for heading, shown in known)])

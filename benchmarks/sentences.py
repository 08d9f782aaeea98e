"""Sentences of the docs that say what the results files say; `make_table.py` puts them in their places."""

from __future__ import annotations

from typing import Any

Data = dict[str, Any]


def listed(words: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def limits(data: Data) -> str:
    """Which rows miss their target by their median run, and how far the runs of a row are apart."""
    aimed = [row for row in data["rows"] if row["target"]]
    missed = [row for row in aimed if row["limit_share"] > row["target"]]
    which = [f"`{row['method']}` on {row['model']} ({row['limit_share']:.4f}, not {row['target']})" for row in missed]
    met = f"By the median run {len(aimed) - len(missed)} of the {len(aimed)} rows with a target meet it"
    apart = sorted(spread(row) for row in data["rows"] if len(row["runs"]) > 1)
    wide = sum(one > 0.05 for one in apart)
    return (
        f"{met}{f', and these do not: {listed(which)}' if missed else ''}. The slowest run of a row is "
        f"{apart[0]:.1%} to {apart[-1]:.1%} slower than its fastest; more than 5 % in {wide} of the {len(apart)} rows "
        "with several runs."
    )


def eager(data: Data) -> str:
    """What became slower on a GPU without a graph, by model and batch."""
    found: dict[str, list[Data]] = {}
    for row in data["rows"]:
        if row["stage"] == "models" and row.get("choice") == "auto" and "eager_speedup" in row:
            found.setdefault(f"{row['model']} at batch {row['batch']}", []).append(row)
    said = []
    for case, rows in found.items():
        slower = list(dict.fromkeys(f"`{row['method']}`" for row in rows if row["eager_speedup"] < 1))
        if slower and len(slower) < len({row["method"] for row in rows}):
            said.append(f"{case} with {listed(slower)}")
    every = [case for case, rows in found.items() if all(row["eager_speedup"] < 1 for row in rows)]
    return f"In eager mode slower than unpatched, whatever the method: {listed(every)}; and {listed(said)}."


FULL = 5000  # microseconds of the unpatched model from which the batches that were measured fill the card


def graph(data: Data) -> str:
    """What methods cost on a GPU in a graph, on large and on small batches, and what is slower than unpatched there."""
    rows = [row for row in data["rows"] if row["stage"] == "models" and row.get("choice") == "auto"]
    said = []
    for large in (True, False):
        costs: dict[str, list[float]] = {}
        for row in rows:
            if "graph_limit_share" in row and (row["graph_unpatched_us"] >= FULL) is large:
                costs.setdefault(f"`{row['method']}`", []).append(100 * row["graph_limit_share"] - 100)
        said.append(listed([f"{name} {ranged(found)}" for name, found in costs.items()]))
    slow: dict[str, list[str]] = {}
    for row in rows:
        if row.get("graph_speedup", 1) < 1:
            slow.setdefault(f"`{row['method']}`", []).append(f"{row['model']} at batch {row['batch']}")
    slower = listed([f"{name} on {listed(cases)}" for name, cases in slow.items()])
    return (
        "In a graph a method costs, over the same model with as many tokens for nothing, where the unpatched model "
        f"takes {FULL / 1000:g} ms or more: {said[0]}. Where it takes less: {said[1]}. Slower than unpatched in a "
        f"graph, too: {slower}."
    )


def ranged(values: list[float]) -> str:
    """ "3 to 5 %", or "3 %" where both ends are so."""
    low, high = (f"{end(values):.0f}".replace("-0", "0") for end in (min, max))
    return f"{low} %" if low == high else f"{low} to {high} %"


def spread(row: Data) -> float:
    """By how much the slowest run of a row is slower than the fastest."""
    shares = [run["limit_share"] for run in row["runs"]]
    return max(shares) / min(shares) - 1


def pruning(segmentation: Data, detection: Data, restored: Data) -> str:
    """What class attention costs dense tasks."""
    points = {task: dense_changes(data) for task, data in (("mIoU", segmentation), ("AP50", detection))}

    def loss(task: str, budget: float) -> str:
        both = (-100 * points[task][method, f"flops={budget}"] for method in ("evit", "topk"))
        return " and ".join(f"{one:.1f}" for one in both)

    ward, random = (-100 * points["AP50"][method, "flops=0.7"] for method in ("ward", "random"))
    copies = -100 * by_mode(restored)["evit"]["copy"]
    return (
        f"At 70 % of the compute `evit` and `topk` cost the detector {loss('AP50', 0.7)} points of AP50, where `ward` "
        f"costs {ward:.1f} and dropping tokens at random {random:.1f}; at 55 % they cost it {loss('AP50', 0.55)}, and "
        f"the segmenter {loss('mIoU', 0.55)} points of mIoU. That is with dropped tokens restored as well as this "
        f"library can: `evit` with copies, as a pruned model has them, loses {copies:.1f} points of AP50 at 70 % (on "
        "the scenes of the tables below)."
    )


def dense_changes(data: Data) -> dict[tuple[str, str], float]:
    """Change of the figure by method and budget."""
    return {(row["method"], row["budget"]): row["change"] for row in data["rows"][1:] if "refused" not in row}


def small_losses(segmentation: Data, detection: Data) -> str:
    """What the library's own method costs dense tasks."""
    miou, ap50 = (-100 * dense_changes(data)["ward", "flops=0.7"] for data in (segmentation, detection))
    return (
        f"At 70 % of the compute `ward` loses {miou:.2f} points of mIoU with the bundled segmenter and {ap50:.2f} "
        "points of AP50 with the bundled detector."
    )


def mutants(data: Data) -> str:
    """How many mutants were killed, of which code."""
    return f"The last run, with seed {data['seed']}, killed {data['killed']} of {data['run']} mutants."


def by_mode(data: Data) -> dict[str, dict[str, float]]:
    """Change of the figure by method and way of restoring."""
    changes: dict[str, dict[str, float]] = {}
    for row in data["rows"][1:]:
        if "refused" not in row:
            changes.setdefault(row["method"], {})[row["options"]["restore"]] = row["change"]
    return changes


def restoring(segmentation: Data, detection: Data) -> str:
    """How often `delta` is the best of the ways that predict nothing, to two decimals, how far from it at most, and
    what `kriging` adds to it."""
    parts, gaps, gains = [], [], []
    for task, data in (("segmentation", segmentation), ("detection", detection)):
        every = [{mode: 100 * change for mode, change in found.items()} for found in by_mode(data).values()]
        gains += [found["kriging"] - found["delta"] for found in every if "kriging" in found]
        copying = [{mode: change for mode, change in found.items() if mode != "kriging"} for found in every]
        points = [{mode: round(change, 2) for mode, change in found.items()} for found in copying]
        best = [found for found in points if found["delta"] == max(found.values())]
        tied = sum(list(found.values()).count(found["delta"]) > 1 for found in best)
        parts.append(
            f"for {len(best)} of {len(points)} methods in {task}{f' ({tied} of them in a tie)' if tied else ''}"
        )
        gaps += [max(found.values()) - found["delta"] for found in copying]
    said = (
        f'Of the ways that predict nothing `"delta"` is the best {listed(parts)}, and never more than {max(gaps):.2f} '
        "points worse than the best."
    )
    if not gains:
        return said
    return said + (
        f' `"kriging"` gains up to {max(gains):.2f} points on it and loses {max(0.0, -min(gains)):.2f} at most; it is '
        f"better for {sum(gain > 0 for gain in gains)} of {len(gains)} pairs of a method and a task."
    )

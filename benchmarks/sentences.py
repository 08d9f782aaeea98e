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


def by_mode(data: Data) -> dict[str, dict[str, float]]:
    """Change of the figure by method and way of restoring."""
    changes: dict[str, dict[str, float]] = {}
    for row in data["rows"][1:]:
        if "refused" not in row:
            changes.setdefault(row["method"], {})[row["options"]["restore"]] = row["change"]
    return changes


def restoring(segmentation: Data, detection: Data) -> str:
    """How often `delta` is the best way of restoring, to two decimals, and how far from the best it is at most."""
    parts, gaps = [], []
    for task, data in (("segmentation", segmentation), ("detection", detection)):
        changes = by_mode(data).values()
        points = [{mode: round(100 * change, 2) for mode, change in found.items()} for found in changes]
        best = [found for found in points if found["delta"] == max(found.values())]
        tied = sum(list(found.values()).count(found["delta"]) > 1 for found in best)
        parts.append(
            f"for {len(best)} of {len(points)} methods in {task}{f' ({tied} of them in a tie)' if tied else ''}"
        )
        gaps += [100 * (max(found.values()) - found["delta"]) for found in changes]
    return f'`"delta"` is the best way {listed(parts)}, and never more than {max(gaps):.2f} points worse than the best.'

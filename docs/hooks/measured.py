"""What benchmarks measured of a method, from the files of benchmarks/results/."""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import origins  # noqa: E402

RESULTS = ROOT / "benchmarks/results"
ERRORS = ("class_error", "token_error", "saliency_error")
NOTHING = "Nothing yet: no results file has a row of this method."


@functools.cache
def read(name: str) -> dict[str, Any]:
    """A results file; empty where there is none."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else {}


def rows(file: str, method: str) -> list[dict[str, Any]]:
    """The rows of a method that have figures."""
    return [row for row in read(file).get("rows", []) if row.get("method") == method and "refused" not in row]


def table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, columns of figures to the right."""
    lines = list(lines)
    figures = [all(re.match(r"[-+\d]", line[at]) for line in lines) for at in range(len(headings))]
    marks = ["---:" if right else "---" for right in figures]
    drawn = [f"| {' | '.join(headings)} |", f"|{'|'.join(marks)}|"]
    return "\n".join([*drawn, *(f"| {' | '.join(line)} |" for line in lines)])


def share(row: dict[str, Any]) -> str:
    """The compute that a budget leaves, as people read it."""
    return f"{float(row['budget'].removeprefix('flops=')):.0%}"


def section(title: str, drawn: str, note: str, *files: str) -> str:
    """A table, what must be known to read it, and where its figures come from."""
    noted = "\n\n".join(origins.note(file).strip() for file in files)
    return f"### {title}\n\n{drawn}\n\n{note}\n\n{noted}"


def text(name: str, drawn: bool) -> str:
    """Every table that there is, each with the file and the command behind it."""
    parts = [
        real(name, "quality_real", "DINOv2 ViT-S/14 on {images} squares of photographs", drawn),
        real(name, "quality_real_518", "The same with 1,369 tokens, on {images} squares"),
        labelled(name),
        dense(name),
        speed(name),
        gpu(name),
        scans(name),
    ]
    return "\n\n".join(filter(None, parts)) or NOTHING


def real(name: str, file: str, title: str, drawn: bool = False) -> str:
    """Errors of the real model, and their curve."""
    found = sorted(rows(file, name), key=lambda row: -row["flops_share"])
    if not found:
        return ""
    lines = []
    for row in found:
        cells = [share(row), str(round(row["tokens_left"]))]
        for key in ERRORS:
            low, high = row[f"{key}_of_tome_interval"]
            cells.append(f"{row[key]:.4f}")
            cells.append(f"{row[f'{key}_of_tome']:.2f} ({low:.2f}-{high:.2f})")
        lines.append(cells)
    headings = ["compute", "tokens left"]
    for key in ERRORS:
        headings += [key.replace("_", " "), "of `tome`'s"]
    picture = f"![errors of {name} against compute]({name}.svg)\n\n" if drawn else ""
    note = (
        "Differences from the unpatched model, of the class token, all image tokens (restored) and the saliency map, "
        "with 95 % intervals over photographs ([Quality](../quality.md))."
    )
    return section(title.format(images=read(file)["images"]), picture + table(headings, lines), note, file)


def labelled(name: str) -> str:
    """Accuracy on Fashion-MNIST."""
    found = sorted(rows("quality", name), key=lambda row: -row["flops_share"])
    if not found:
        return ""
    lines = []
    for row in found:
        low, high = row["top1_change_interval"]
        change = f"{100 * row['top1_change']:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"
        lines.append([share(row), str(round(row["tokens_left"])), f"{row['top1']:.2%}", change])
    drawn = table(("compute", "tokens left", "top-1", "change, points"), lines)
    title = f"A small classifier of Fashion-MNIST, {read('quality')['images']:,} test images"
    note = "[Quality](../quality.md) says how."
    return section(title, drawn, note, "quality")


HEADLINES = {"segmentation": ("miou", "mIoU"), "detection": ("ap50", "AP50")}


def dense(name: str) -> str:
    """Figures of the bundled segmenter and detector."""
    lines = []
    for task, (key, title) in HEADLINES.items():
        for row in sorted(rows(task, name), key=lambda row: -row["flops_share"]):
            low, high = row["change_interval"]
            change = f"{100 * row['change']:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"
            lines.append([task, share(row), f"{title} {row[key]:.2%}", change])
    if not lines:
        return ""
    drawn = table(("task", "compute", "figure", "change, points"), lines)
    note = "[Dense tasks](../dense.md) says what the models are."
    return section("Dense tasks, on composed scenes", drawn, note, *HEADLINES)


def speed(name: str) -> str:
    """Time next to free slicing, on a CPU."""
    found = rows("speed", name)
    if not found:
        return ""
    lines = []
    for row in found:
        gain = f"{row['speedup']:.2f}" if row["speedup"] else "-"
        limit = "-" if row["limit_share"] is None else f"{row['limit_share']:.3f}"
        lines.append([row["model"], str(row["batch_size"]), row["budget"], str(row["tokens_left"]), gain, limit])
    drawn = table(("model", "batch", "budget", "tokens left", "speed-up", "time / limit"), lines)
    note = "*time / limit* is over that of a model whose tokens are sliced off for nothing ([Speed](../speed.md))."
    return section(f"Speed on {read('speed')['threads']} CPU threads", drawn, note, "speed")


def gpu(name: str) -> str:
    """Speed of whole models on a GPU."""
    found = [row for row in rows("gpu", name) if row["stage"] == "models" and "graph_speedup" in row]
    found = [row for row in found if row.get("choice") == "auto"]
    if not found:
        return ""
    lines = [
        [
            row["model"],
            str(row["side"]),
            str(row["batch"]),
            f"{row['graph_speedup']:.2f}",
            f"{row['eager_speedup']:.2f}",
        ]
        for row in found
    ]
    drawn = table(("model", "input", "batch", "speed-up, graph", "speed-up, eager"), lines)
    title = f"Speed on a GPU ({read('gpu')['gpu']}), half precision"
    return section(title, drawn, "[On a GPU](../gpu.md) says how.", "gpu")


def scans(name: str) -> str:
    """What it costs a state-space model, with the default rules."""
    found = [row for row in rows("scans", name) if (row["conv"], row["gap"]) == ("stand_in", "size")]
    if not found:
        return ""
    data = read("scans")
    title = f"A state-space model ({data['model']}, {data['images']} test images, {data['flops']:.0%} of the compute)"
    change = f"{100 * found[0]['top1_change']:+.1f} points"
    cells = [f"{data['top1']:.1%}", change, f"{found[0]['class_error']:.3f}"]
    drawn = table(("top-1, unpatched", "change", "class error"), [cells])
    note = "With the default rules of scans ([State-space models](../state-space.md))."
    return section(title, drawn, note, "scans")

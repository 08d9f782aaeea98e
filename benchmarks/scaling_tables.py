"""Tables of docs/scaling.md: memory while images go by, and images a second of one and of two processes."""

from __future__ import annotations

import statistics
from typing import Any

from tabular import table

Data = dict[str, Any]
KINDS = {
    "driver": "process that leads",
    "model": "workers with a model",
    "reader": "readers and Ray's own",
    "store": "store",
}
SHARES = (0.2, 0.4, 0.6, 0.8, 0.95)


def memory(data: Data) -> str:
    """Images that are done by rows, kinds of processes by columns: MiB."""
    rows = []
    parts = max(one["parts"] for one in data["samples"])
    for share in SHARES:
        found = next(one for one in data["samples"] if one["parts"] >= share * parts)
        cells = [f"{round(data['images'] * found['parts'] / parts, -2):,.0f}"]
        cells += [f"{found[kind]:,.0f}" for kind in KINDS] + [f"{sum(found[kind] for kind in KINDS):,.0f}"]
        rows.append(cells)
    return table(["images done", *KINDS.values(), "all"], rows, left=0)


def start(data: Data) -> str:
    """How much more it is before the first of the rows."""
    samples = data["samples"]
    sums = [sum(one[kind] for kind in KINDS) for one in samples]
    parts = max(one["parts"] for one in samples)
    steady = next(at for at, one in enumerate(samples) if one["parts"] >= SHARES[0] * parts)
    more = max(sums[:steady]) - sums[steady]
    return f"Before the first row, while workers start and read ahead, it is up to {more:,.0f} MiB more."


def scaling(data: Data) -> str:
    """Commands by rows: images a second with one and two processes in each round, the median gain of the rounds with
    the least and the largest, and the CPU time per image where it is known."""
    heads = ["command", *(f"{count}, images/s" for count in ("one", "two")), "gain"]
    heads += [f"{count}, CPU time per image" for count in ("one", "two")]
    lines = []
    for command in dict.fromkeys(row["command"] for row in data["rows"]):
        mine = [row for row in data["rows"] if row["command"] == command]
        one, two = ([row for row in mine if row["processes"] == count] for count in (1, 2))
        cells = [", ".join(f"{row['images_per_second']:.0f}" for row in rows) for rows in (one, two)]
        gains = [b["images_per_second"] / a["images_per_second"] for a, b in zip(one, two, strict=False)]
        cells.append(f"{statistics.median(gains):.2f} x ({min(gains):.2f}-{max(gains):.2f})")
        for rows in (one, two):
            known = [row["cpu_ms_per_image"] for row in rows if "cpu_ms_per_image" in row]
            cells.append(f"{statistics.median(known):.1f} ms" if known else "")
        lines.append([f"`{command}`", *cells])
    return table(heads, lines)


def tables(read: dict[str, Data]) -> dict[tuple[str, str], str]:
    """(file, marker) -> table, as in `make_table.tables`."""
    return {
        ("docs/scaling.md", "memory"): memory(read["embed_memory"]),
        ("docs/scaling.md", "memory in words"): start(read["embed_memory"]),
        ("docs/scaling.md", "scaling"): scaling(read["scaling"]),
    }

"""Tables of docs/scaling.md: memory while images go by, and images a second of one and of two processes."""

from __future__ import annotations

from typing import Any

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
    lines = [f"| images done | {' | '.join(KINDS.values())} | all |", "|---:|" + "---:|" * (len(KINDS) + 1)]
    parts = max(one["parts"] for one in data["samples"])
    for share in SHARES:
        found = next(one for one in data["samples"] if one["parts"] >= share * parts)
        cells = [f"{round(data['images'] * found['parts'] / parts, -2):,.0f}"]
        cells += [f"{found[kind]:,.0f}" for kind in KINDS] + [f"{sum(found[kind] for kind in KINDS):,.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def scaling(data: Data) -> str:
    """Commands by rows: images a second with one and two processes, the best round, all rounds, and the gain."""
    lines = ["| command | one | two | gain | all rounds, one; two |", "|---|---:|---:|---:|---|"]
    for command in dict.fromkeys(row["command"] for row in data["rows"]):
        rates = [
            [row["images_per_second"] for row in data["rows"] if (row["command"], row["processes"]) == (command, count)]
            for count in (1, 2)
        ]
        one, two = map(max, rates)
        rounds = "; ".join(", ".join(f"{rate:.0f}" for rate in each) for each in rates)
        lines.append(f"| `{command}` | {one:.0f} | {two:.0f} | {two / one:.2f} x | {rounds} |")
    return "\n".join(lines)


def tables(read: dict[str, Data]) -> dict[tuple[str, str], str]:
    """(file, marker) -> table, as in `make_table.tables`."""
    return {
        ("docs/scaling.md", "memory"): memory(read["embed_memory"]),
        ("docs/scaling.md", "scaling"): scaling(read["scaling"]),
    }

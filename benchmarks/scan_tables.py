"""Table of results/scans.json: what each rule of scans costs each method."""

from __future__ import annotations

RULES = [("stand_in", gap) for gap in ("size", "hold", "self", "frozen")] + [("zeros", "size"), ("compact", "size")]


def scans(data: dict) -> str:
    """Methods by rows, rules of scans by columns: change of top-1 in points and class error; best first."""
    lines = [
        f"{data['images']:,} test images, {data['top1']:.1%} unpatched; `scan_conv`, `scan_gap`:",
        "",
        f"| method | {' | '.join(f'`{conv}`, `{gap}`' for conv, gap in RULES)} |",
        "|---|" + "---:|" * len(RULES),
    ]
    found = {(row["method"], row["conv"], row["gap"]): row for row in data["rows"] if "refused" not in row}
    best = {row["method"]: row["class_error"] for key, row in found.items() if key[1:] == RULES[0]}
    for method in sorted(best, key=best.__getitem__):
        rows = [found.get((method, *rule)) for rule in RULES]
        cells = ["-" if row is None else f"{100 * row['top1_change']:+.1f} / {row['class_error']:.3f}" for row in rows]
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    return "\n".join(lines)

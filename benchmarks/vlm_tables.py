"""Tables of docs/vlm.md, and what they say in words: the demo's results, and those with other positions."""

from __future__ import annotations

from tabular import table

from tokenreduce.lab.quality.demo_vlm import KEEPS, beat_random


def accuracy(data: dict) -> str:
    """Methods by rows, what is kept by columns: exact answers, points more than `random`, share of the cache; best
    first where least is kept. Bold: the interval of those points lies above zero."""
    found = {(row["method"], row["budget"]): row for row in data["rows"] if "refused" not in row}
    unpatched = found["unpatched", None]
    lines = [
        f"| method | {' | '.join(f'keep={keep}' for keep in KEEPS)} |",
        "|---|" + "---:|" * len(KEEPS),
        f"| unpatched, {unpatched['exact']:.1%} |" + " |" * len(KEEPS),
    ]
    least = f"keep={KEEPS[-1]}"
    names = [name for name, budget in found if budget == least]
    for name in sorted(names, key=lambda name: -found[name, least]["exact"]):
        rows = [found.get((name, f"keep={keep}")) for keep in KEEPS]
        lines.append(f"| `{name}` | {' | '.join('-' if row is None else cell(row) for row in rows)} |")
    return "\n".join(lines)


def cell(row: dict) -> str:
    over = ""
    if "over_random" in row:
        low, high = (f"{100 * end:+.1f}" for end in row["over_random_interval"])
        over = f" ({100 * row['over_random']:+.1f}: {low} to {high})"
        over = f"**{over.strip()}**" if row["over_random_interval"][0] > 0 else over.strip()
    return " ".join(part for part in (f"{row['exact']:.1%}", over, f"KV {row['kv_share']:.0%}") if part)


def sentences(data: dict) -> str:
    """Which methods beat `random`, budget by budget."""
    measured = [row for row in data["rows"] if "refused" not in row]
    return "\n".join(f"- {sentence}" for keep in KEEPS for sentence in beat_random(measured, keep))


def positions(data: dict) -> str:
    """Exact answers where tokens that are left are numbered anew and where they keep their positions, and the gain."""
    rows = []
    for row in data["rows"]:
        low, high = (f"{100 * end:+.1f}" for end in row["gain_interval"])
        gain = f"{100 * row['gain']:+.1f} ({low} to {high})"
        rows.append([f"`{row['method']}`", f"{row['renumber']:.1%}", f"{row['keep']:.1%}", gain])
    return table([f"keep={data['keep']}", '`"renumber"`', '`"keep"`', "points, 95 % interval"], rows)


def tables(read: dict) -> dict[tuple[str, str], str]:
    """(file, marker) -> table or sentences, as in `make_table.tables`."""
    return {
        ("docs/vlm.md", "scene_vlm"): accuracy(read["demo_vlm"]),
        ("docs/vlm.md", "scene_vlm in words"): sentences(read["demo_vlm"]),
        ("docs/vlm.md", "positions"): positions(read["vlm_positions"]),
    }

"""What docs/vlm.md says of the demo's results, of small ones made up here."""

from __future__ import annotations

from typing import Any

from scripts import script

vlm_tables = script("vlm_tables")


def row(method: str, keep: float, exact: float, over: tuple[float, float, float] | None = None) -> dict[str, Any]:
    made: dict[str, Any] = {"method": method, "budget": f"keep={keep}", "exact": exact, "kv_share": keep}
    return made if over is None else made | {"over_random": over[0], "over_random_interval": list(over[1:])}


DATA = {
    "rows": [
        {"method": "unpatched", "budget": None, "exact": 0.951, "kv_share": 1.0},
        row("divprune", 0.5, 0.94, (0.04, 0.01, 0.07)),
        row("divprune", 0.1, 0.5, (-0.2, -0.3, -0.1)),
        row("random", 0.5, 0.9),
        row("random", 0.25, 0.8),
        row("random", 0.1, 0.7),
        {"method": "pool", "budget": "keep=0.1", "refused": "too few"},
    ]
}


def test_accuracy() -> None:
    assert vlm_tables.accuracy(DATA).splitlines() == [
        "| method | keep=0.5 | keep=0.25 | keep=0.1 |",
        "|---|---:|---:|---:|",
        "| unpatched, 95.1% | | | |",
        "| `random` | 90.0% KV 50% | 80.0% KV 25% | 70.0% KV 10% |",
        "| `divprune` | 94.0% **(+4.0: +1.0 to +7.0)** KV 50% | - | 50.0% (-20.0: -30.0 to -10.0) KV 10% |",
    ]


def test_in_words() -> None:
    assert vlm_tables.sentences(DATA).splitlines() == [
        "- At keep=0.5 better than random, in points: divprune (+4.0).",
        "- At keep=0.1 worse than random, in points: divprune (-20.0).",
    ]


def test_positions() -> None:
    row = {"method": "divprune", "renumber": 0.826, "keep": 0.922, "gain": 0.096, "gain_interval": [0.074, 0.122]}
    assert vlm_tables.positions({"keep": 0.5, "rows": [row]}).splitlines() == [
        '| keep=0.5 | `"renumber"` | `"keep"` | points, 95 % interval |',
        "|---|---:|---:|---:|",
        "| `divprune` | 82.6% | 92.2% | +9.6 (+7.4 to +12.2) |",
    ]

"""Tables of docs/scaling.md from results that are known."""

from __future__ import annotations

from scripts import script

scaling_tables = script("scaling_tables")


def test_memory() -> None:
    samples = [
        {"parts": parts, "driver": 1000.0 + parts, "model": 5.0, "reader": 3.0, "store": 1.0} for parts in range(101)
    ]
    made = scaling_tables.memory({"images": 20000, "samples": samples}).splitlines()
    assert made[2] == "| 4,000 | 1,020 | 5 | 3 | 1 | 1,029 |"
    assert made[-1] == "| 19,000 | 1,095 | 5 | 3 | 1 | 1,104 |" and len(made) == 7


def test_what_is_more_before_the_first_row() -> None:
    """Rows begin at a fifth of the parts."""
    driver = [0.0, 900.0, 1500.0, 1000.0, 2000.0, 1000.0]
    samples = [
        {"parts": parts, "driver": mib, "model": 5.0, "reader": 3.0, "store": 1.0}
        for parts, mib in zip((0, 0, 1, 2, 5, 10), driver, strict=True)
    ]
    assert scaling_tables.start({"samples": samples}) == (
        "Before the first row, while workers start and read ahead, it is up to 500 MiB more."
    )


def test_scaling() -> None:
    rates = [
        ("eval", 1, 10.4),
        ("eval", 2, 15.6),
        ("eval", 1, 8.0),
        ("eval", 2, 16.0),
        ("embed", 1, 1),
        ("embed", 2, 2),
    ]
    rows = [{"command": name, "processes": count, "images_per_second": rate} for name, count, rate in rates]
    rows[0]["cpu_ms_per_image"] = 12.34
    assert scaling_tables.scaling({"rows": rows}).splitlines()[2:] == [
        "| `eval` | 10, 8 | 16, 16 | 1.75 x (1.50-2.00) | 12.3 ms |  |",
        "| `embed` | 1 | 2 | 2.00 x (2.00-2.00) |  |  |",
    ]

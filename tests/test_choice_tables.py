"""Tables of docs/choosing.md and docs/reproduce.md, from small results made up here."""

from __future__ import annotations

from typing import Any

from scripts import script

choice_tables = script("choice_tables")


def lines(table: str) -> str:
    """A table as it is written in these tests, without the indentation."""
    return "\n".join(line.strip() for line in table.strip().splitlines())


def test_budgets() -> None:
    real: list[dict[str, Any]] = [{"method": "unpatched", "budget": None}]
    small = list(real)
    for share in (0.45, 0.6, 0.8):
        for i, method in enumerate(("tome", "ward", "pool")):
            row = {"method": method, "budget": f"flops={share}"}
            real.append(row | {"class_error": share / 10 + i, "token_error": share / 100, "speedup": 2.344 - share})
            small.append(row | {"top1_change": (i - 1) * share / 100})
    assert choice_tables.budgets({"rows": real}, {"rows": small}) == lines("""
        | compute | method | class error | token error | speed-up | top-1, change in points |
        |---:|---|---:|---:|---:|---:|
        | 80% | `ward` | 1.0800 | 0.0080 | 1.54 x | +0.00 |
        | 80% | `tome` | 0.0800 | 0.0080 | 1.54 x | -0.80 |
        | 60% | `ward` | 1.0600 | 0.0060 | 1.74 x | +0.00 |
        | 60% | `tome` | 0.0600 | 0.0060 | 1.74 x | -0.60 |
        | 45% | `ward` | 1.0450 | 0.0045 | 1.89 x | +0.00 |
        | 45% | `tome` | 0.0450 | 0.0045 | 1.89 x | -0.45 |
    """)


def test_published_figures_with_a_command() -> None:
    row = {"model": "DeiT-S", "budget": "r=13", "full": 79.82, "reduced": 78.8, "source": "somebody"}
    rows = [row | {"weights": "deit_small", "options": "--r 13"}, row]
    assert choice_tables.published(rows, "tome") == lines("""
        | model | budget | unreduced | published | source | command |
        |---|---|---:|---:|---|---|
        | DeiT-S | r=13 | 79.82 | 78.80 | somebody | `tokenreduce eval --model deit_small --data imagenet --no-exif --data-dir D --method tome --r 13` |
    """)  # noqa: E501

"""A table in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """`heads` over `rows`; the first `left` columns are words, all others numbers."""
    ruler = "|" + "---|" * left + "---:|" * (len(heads) - left)
    return "\n".join([line(heads), ruler, *map(line, rows)])


def line(cells: Sequence[str]) -> str:
    """One row."""
    return f"| {' | '.join(cells)} |"

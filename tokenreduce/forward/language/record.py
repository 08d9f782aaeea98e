"""`LanguageRecord`: what the last prompts of a patched model became, kept for `report`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LanguageRecord:
    """Counts of the last forward from which something left.

    Args:
        units: tokens of each image and video, entered and left.
        rows: places of the longest prompt, padding included, and rows of it that entered the language model.
        row_bytes: bytes of one row of one prompt in all layers of the cache; 0 without a cache.
        cached: rows in the cache, and places that they stand for.
        prompts: how many there were.
        layers: layers of the language model.
    """

    units: tuple[tuple[int, int], ...]
    rows: tuple[int, int]
    row_bytes: int
    cached: tuple[int, int]
    prompts: int
    layers: int

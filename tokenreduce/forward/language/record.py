"""`LanguageRecord`: what the last prompts of a patched model became, kept for `report`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LanguageRecord:
    """Counts of the last forward from which something left.

    Args:
        units: tokens of each image and video, entered and left.
        rows: places of the longest prompt, padding included, and its rows in the last layer.
        kv_bytes: bytes of the prompts in the cache, and what they would be if nothing had left; 0 without a cache.
        prompts: how many there were.
        tokens: tokens of images and videos in each layer.
        layers: rows of the longest prompt in each layer, and the entries that they attend to: those of the cache before
            them too.
        places: the same, of every layer, if nothing had ever left.
        grids: of each image and video, where it is known.
    """

    units: tuple[tuple[int, int], ...]
    rows: tuple[int, int]
    kv_bytes: tuple[int, int]
    prompts: int
    tokens: tuple[int, ...]
    layers: tuple[tuple[int, int], ...]
    places: tuple[int, int]
    grids: tuple[tuple[int, ...] | None, ...]

"""The honest baseline: pool neighbouring cells of the grid, whatever they show."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from tokenreduce.errors import InvalidValueError
from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.constants import constant
from tokenreduce.ops.tracing import computed_once
from tokenreduce.reducers.contract import EVERYWHERE, Reducer
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens

OF_VIDEOS = "of a video, whose grid is (T, H, W), it pools nothing: use another method for prompts with videos"
OF_DROPOUT = "patch dropout in training takes the grid away: use another method, or eval()"


@register
@dataclass(frozen=True)
class Pool(Reducer):
    """Average 2 x 2 neighbours of the grid: all cells, or an even spread of them where the budget asks for less.

    A baseline, no paper. Cells pool in a fixed order spread over the image (bit-reversed), the last one in part, so
    that every count can be met; when all cells of a size are pooled, 2 x 2 of them follow. Features are size-weighted
    means.
    """

    name: ClassVar[str] = "pool"
    kind: ClassVar[str] = "baseline"
    paper: ClassVar[str] = "none"
    year: ClassVar[int] = 2026
    places: ClassVar[frozenset[str]] = EVERYWHERE
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = "its specification"
    needs: ClassVar[frozenset[str]] = frozenset({"grid"})
    shape: ClassVar[str] = "once"
    scan_shape: ClassVar[str] = "once"

    def least(self, n: int) -> int:
        return (n + 3) // 4

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        if tokens.grid is None or len(tokens.grid) != 2 or tokens.grid[0] * tokens.grid[1] < tokens.count:
            video = tokens.grid is not None and len(tokens.grid) == 3
            raise InvalidValueError(
                f"pool needs the tokens to be a grid (H, W), but there are {tokens.count} in a grid {tokens.grid}; "
                + (OF_VIDEOS if video else OF_DROPOUT)
            )
        batch, device = tokens.features.shape[0], tokens.features.device
        dest, rep, sources = (
            constant(index, device).expand(batch, -1) for index in pooling(*tokens.grid, tokens.count, keep)
        )
        return TokenMap(keep, dest=dest, rep=rep, sources=sources)

    def work(self, step: Step) -> int:
        return 0


@computed_once
def pooling(height: int, width: int, before: int, after: int) -> tuple[tuple[int, ...], ...]:
    """Destinations of `before` pooled tokens when `after` are left, a representative of each, and the others."""
    old, new = partition(height, width, before), partition(height, width, after)
    first = {label: cell for cell, label in reversed(list(enumerate(old)))}
    dest = tuple(new[first[label]] for label in range(before))
    rep = tuple(dest.index(label) for label in range(after))
    return dest, rep, tuple(i for i in range(before) if dest.index(dest[i]) != i)


@lru_cache(maxsize=256)
def partition(height: int, width: int, count: int) -> tuple[int, ...]:
    """A label 0 ... count - 1 for each cell of the grid, by first appearance in raster order."""
    owner = list(range(height * width))
    for cell, target in merges(height, width)[: height * width - count]:
        owner = [target if o == cell else o for o in owner]
    labels: dict[int, int] = {}
    return tuple(labels.setdefault(o, len(labels)) for o in owner)


@lru_cache(maxsize=16)
def merges(height: int, width: int) -> tuple[tuple[int, int], ...]:
    """(cell, cell that takes it), in the order in which cells are pooled: 2 x 2, then 4 x 4, and so on."""
    out, side = [], 1
    while side < max(height, width):
        corners = [(y, x) for y in range(0, height, 2 * side) for x in range(0, width, 2 * side)]
        for i in spread(len(corners)):
            y, x = corners[i]
            members = [(y + dy, x + dx) for dy in (0, side) for dx in (0, side)]
            inside = [b * width + a for b, a in members if b < height and a < width]
            out += [(member, inside[0]) for member in inside[1:]]
        side *= 2
    return tuple(out)


def spread(n: int) -> list[int]:
    """0 ... n - 1 in bit-reversed order, so that every beginning of it is spread evenly."""
    bits = max(1, (n - 1).bit_length())
    return [i for i in (int(f"{k:0{bits}b}"[::-1], 2) for k in range(1 << bits)) if i < n]

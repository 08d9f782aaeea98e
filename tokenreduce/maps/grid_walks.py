"""How the four snakes of PlainMamba walk over the tokens that are left of a grid."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from tokenreduce.maps.walks import NOT_MISSED, Walk, gaps
from tokenreduce.ops.constants import constant, counting
from tokenreduce.ops.order import stable_order
from tokenreduce.ops.rows import take

Grid = tuple[int, int]
# The move that led to a step, as the rows of `direction_Bs` have it; 0 is the first step, which none led to.
MOVES = {(0, 1): 1, (0, -1): 2, (-1, 0): 3, (1, 0): 4}


@dataclass(frozen=True)
class GridWalk(Walk):
    """One direction over the rows `(B, L, ...)` of what is left.

    Attributes:
        reverse: whether the direction visits `order` from the last step to the first.
        shown: `(B, L)`, for each row the row whose time step, B and C it is written and read with: what stands for
            token t of the raster where this direction visits the row at step t.
        moves: `(B, L)`, the row of the direction table for each row.
    """

    reverse: bool = False
    shown: Tensor | None = None
    moves: Tensor | None = None
    tables: ClassVar[tuple[str, ...]] = (*Walk.tables, "shown", "moves")


@dataclass(frozen=True)
class GridWalks:
    """The four directions, and how rows `(B, L, C)` fill the grid.

    Attributes:
        grid: (H, W).
        directions: along rows there and back, along columns there and back.
        places: `(B, L)`, the place of each row on the grid; None: rows are the whole grid.
        owners: `(B, N)`, the row that stands for each place.
        empty: `(B, N)`, the places that stay zero; None: none does.
    """

    grid: Grid
    directions: tuple[GridWalk, ...]
    places: Tensor | None = None
    owners: Tensor | None = None
    empty: Tensor | None = None

    @property
    def count(self) -> int:
        """N, the places of the grid."""
        return self.grid[0] * self.grid[1]

    def fill(self, x: Tensor) -> Tensor:
        """The whole grid `(B, N, C)` of rows `(B, L, C)`."""
        if self.owners is None:
            return x
        full = take(x, self.owners)
        return full if self.empty is None else full.masked_fill(self.empty[..., None], 0)

    def pick(self, full: Tensor) -> Tensor:
        """The rows `(B, L, C)` of the whole grid `(B, N, C)`."""
        return full if self.places is None else take(full, self.places)


def whole_grid(grid: Grid, batch: int, device: torch.device) -> GridWalks:
    """The walks over a grid whose tokens are all there."""
    places = counting(grid[0] * grid[1], device)[None]
    directions = snakes(grid, places, places, "hold")
    return GridWalks(grid, tuple(walk.expanded(batch) for walk in directions))


def left_of_grid(
    grid: Grid, places: Tensor, owners: Tensor, conv: str, gap: str, sizes: Tensor | None = None
) -> GridWalks:
    """The walks over rows that are left of a grid of N tokens.

    Args:
        places: `(B, L)`, the place of each row on the grid; an output without a token of its own has that of another.
        owners: `(B, N)`, the row that stands for each place; rows stand for their own.
        conv: "stand_in", what stands for a token fills its place, or "zeros", nothing does.
        gap: one of `GAPS` but "frozen".
        sizes: `(B, L)`, how many tokens each row holds, which "size" reads; None: one each.
    """
    empty = None
    if conv == "zeros":
        empty = torch.ones_like(owners, dtype=torch.bool).scatter(1, places, False)
    directions = snakes(grid, places, owners, gap)
    if gap == "size":
        directions = tuple(replace(walk, sizes=sizes) for walk in directions)
    return GridWalks(grid, directions, places, owners, empty)


def first_of_grid(grid: Grid, batch: int, left: int, device: torch.device) -> GridWalks:
    """The walks over the first `left` rows of a grid; the last of them stands for all that are gone."""
    owners = counting(grid[0] * grid[1], device).clamp(max=left - 1).expand(batch, -1)
    return left_of_grid(grid, counting(left, device).expand(batch, -1), owners, "stand_in", "hold")


def snakes(grid: Grid, places: Tensor, owners: Tensor, gap: str) -> tuple[GridWalk, ...]:
    """The four directions over rows at these places."""
    found, last = [], grid[0] * grid[1] - 1
    for along_columns in (False, True):
        rank = constant(steps(grid, along_columns), places.device)[places]
        order = stable_order(rank, 1)
        for reverse in (False, True):
            step = last - rank if reverse else rank
            missing, before = (None, None) if gap in NOT_MISSED else gaps(rank, order, -1 if reverse else 1)
            moves = constant(moves_into(grid, along_columns, reverse), places.device)[places]
            shown = owners.gather(1, step)
            found.append(GridWalk(order, None, missing, before, gap, None, reverse=reverse, shown=shown, moves=moves))
    return tuple(found)


@lru_cache(maxsize=256)
def visited(grid: Grid, along_columns: bool) -> tuple[int, ...]:
    """The places of a grid in the order of the snake that starts at the top left; from the last to the first they are
    the direction that comes back."""
    height, width = grid
    if along_columns:
        return tuple(
            row * width + column
            for column in range(width)
            for row in (range(height) if column % 2 == 0 else reversed(range(height)))
        )
    return tuple(
        row * width + column
        for row in range(height)
        for column in (range(width) if row % 2 == 0 else reversed(range(width)))
    )


@lru_cache(maxsize=256)
def steps(grid: Grid, along_columns: bool) -> tuple[int, ...]:
    """The step at which the snake is at each place."""
    order = visited(grid, along_columns)
    return tuple(step for _, step in sorted(zip(order, range(len(order)), strict=True)))


@lru_cache(maxsize=256)
def moves_into(grid: Grid, along_columns: bool, reverse: bool) -> tuple[int, ...]:
    """The move by which the direction comes to each place, a value of `MOVES`."""
    order, width = visited(grid, along_columns), grid[1]
    order = order[::-1] if reverse else order
    moves = dict.fromkeys(order[:1], 0)
    for before, place in pairwise(order):
        moves[place] = MOVES[place // width - before // width, place % width - before % width]
    return tuple(moves[place] for place in range(len(order)))

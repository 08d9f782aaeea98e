"""`Places`: where in the input the tokens of one forward come from."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from tokenreduce.errors import InvalidValueError
from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.constants import counting, watched
from tokenreduce.ops.modes import capturing


class Places:
    """Mean grid positions and representatives of the current tokens, kept up to date for methods that read them.

    Args:
        entered: image tokens of the input.
        grid: their `(H, W)`, or None.
        reads: the names of `tokens.PROVIDABLE` that the method reads.
    """

    def __init__(self, entered: int, grid: tuple[int, ...] | None, reads: frozenset[str]) -> None:
        self.entered, self.grid, self.reads = entered, grid, reads
        self._positions: Tensor | None = None
        self._since: list[tuple[TokenMap, Tensor | None]] = []  # maps that positions have not followed yet
        self._origin: Tensor | None = None

    def follow(self, token_map: TokenMap, sizes: Tensor | None) -> None:
        """Let the places follow `token_map`, applied to tokens of these `sizes`."""
        if "positions" in self.reads and token_map.middles is None:
            self._since.append((token_map, sizes))
        elif "positions" in self.reads:
            self._positions = token_map.middles
            self._since.clear()
        if "origin" in self.reads:
            if token_map.rep is None:
                raise InvalidValueError("a method that reads the origin of tokens must name representatives (rep)")
            before = self.origin(token_map.rep.shape[0], token_map.rep.device)
            self._origin = before.gather(1, token_map.rep)

    def positions(self, batch: int, device: torch.device) -> Tensor:
        """`(B, N, 2)`: mean row and column of the input tokens in each token."""
        found = self._positions
        if found is None:
            found = grid_positions(self.grid or (1, self.entered), device).expand(batch, -1, -1).clone()
        for token_map, sizes in self._since:  # not before they are read: some methods and last layers never do
            mean = TokenMap(token_map.count, dest=token_map.dest_or_argmax(), weight=token_map.weight)
            found = self._positions = mean.apply(found, sizes)
        self._since.clear()
        return found

    def origin(self, batch: int, device: torch.device) -> Tensor:
        """`(B, N)`: the input token that represents each token."""
        return counting(self.entered, device).expand(batch, -1) if self._origin is None else self._origin


def grid_positions(grid: tuple[int, ...], device: torch.device) -> Tensor:
    """Row and column of every cell in raster order, `(H W, 2)`; do not write to it, it may be shared."""
    if device.type == "cpu" and not watched() and not capturing():
        return _kept_positions(grid)
    return _positions(grid, device)


def _positions(grid: tuple[int, ...], device: torch.device) -> Tensor:
    sides = [counting(side, device).float() for side in grid]
    return torch.stack(torch.meshgrid(*sides, indexing="ij"), -1).flatten(0, -2)


# A tensor made in inference mode could not take part in training later.
@lru_cache(maxsize=64)
def _kept_positions(grid: tuple[int, ...]) -> Tensor:
    with torch.inference_mode(False):
        return _positions(grid, torch.device("cpu"))

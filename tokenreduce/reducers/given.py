"""Checks of what the functional layer is given."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.maps.token_map import TokenMap


def need_map(token_map: object) -> None:
    if not isinstance(token_map, TokenMap):
        raise InvalidTypeError(f"token_map is {token_map!r}; it must be a TokenMap, such as tokenreduce.plan returns")


def need_tokens(name: str, x: Any, batch: int | None = None, count: int | None = None, what: str = "") -> None:
    """Raise unless `x` is `(B, N, C)` with this batch and count, where given: a gather takes rows of a larger batch
    without a word."""
    shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
    wanted = "(B, N, C)" if count is None else f"{what} (B, {count}, C) with B = {batch}"
    if not isinstance(x, Tensor):
        raise InvalidTypeError(f"{name} is a {shape}; it must be a tensor: {wanted}")
    if x.ndim != 3 or (count is not None and x.shape[:2] != (batch, count)):
        error = InvalidTypeError if count is None else InvalidValueError
        raise error(f"{name} has shape {shape}; it must be a tensor: {wanted}")


def need_floats(name: str, x: Tensor) -> None:
    """Raise for whole numbers, whose means would be cut; where tokens are copied only, they may be labels."""
    if not x.is_floating_point():
        raise InvalidTypeError(f"{name} holds {x.dtype}; tokens are floating-point numbers, give {name}.float()")


def need_sizes(sizes: Any, x: Tensor) -> None:
    if not isinstance(sizes, Tensor):
        raise InvalidTypeError(f"sizes is {sizes!r}; it must be a tensor (B, N)")
    if sizes.shape != x.shape[:2]:
        raise InvalidValueError(f"sizes has shape {tuple(sizes.shape)}; it must be (B, N) = {tuple(x.shape[:2])}")


def need_whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidTypeError(f"{name} is {value!r}; it must be a whole number (int)")
    if value < least:
        raise InvalidValueError(f"{name} is {value}; it must be {least} or more")


def as_grid(grid: Any) -> tuple[int, ...] | None:
    """`grid` as a tuple; raises unless it has two or three whole numbers of 1 or more, or is None."""
    if grid is None:
        return None
    if not isinstance(grid, (tuple, list)) or len(grid) not in (2, 3):
        raise InvalidTypeError(f"grid is {grid!r}; it must be (H, W) or, of a video, (T, H, W)")
    for length in grid:
        need_whole("a side of the grid", length, 1)
    return tuple(grid)

"""PlainMamba's mixer step by step: one image, one token and one direction after the other, in fp64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

RIGHT, LEFT, UP, DOWN = 1, 2, 3, 4


def slow_orders(height: int, width: int) -> list[tuple[list[int], list[int]]]:
    """For each direction the places in the order of its visits, and the moves that led there; 0 for the first."""
    rows, columns = range(height), range(width)
    # Row by row: the first row to the right, or that from which the last direction came back.
    down = [(i, j) for i in rows for j in (columns if i % 2 == 0 else columns[::-1])]
    up_starts_left = height % 2 == 1
    up = [
        (i, j)
        for count, i in enumerate(rows[::-1])
        for j in (columns[::-1] if (count % 2 == 0) == up_starts_left else columns)
    ]
    right = [(i, j) for j in columns for i in (rows if j % 2 == 0 else rows[::-1])]
    left_starts_up = width % 2 == 1
    left = [
        (i, j)
        for count, j in enumerate(columns[::-1])
        for i in (rows[::-1] if (count % 2 == 0) == left_starts_up else rows)
    ]
    return [([i * width + j for i, j in path], [0, *map(move, path, path[1:])]) for path in (down, up, right, left)]


def move(before: tuple[int, int], after: tuple[int, int]) -> int:
    if before[0] == after[0]:
        return RIGHT if after[1] > before[1] else LEFT
    return DOWN if after[0] > before[0] else UP


def slow_mixer(
    mixer: Any,
    u: Tensor,
    grid: tuple[int, int],
    places: Tensor,
    owners: Tensor,
    conv: str = "stand_in",
    gap: str = "hold",
    sizes: Tensor | None = None,
) -> Tensor:
    """The mixer of rows `u (B, L, C)` that stand at `places (B, L)` and for the places of `owners (B, N)`: restored,
    convolved, and scanned with gaps where tokens are missing; `sizes (B, L)` are for "size"."""
    many = sizes if gap == "size" and sizes is not None else torch.ones_like(places)
    images = zip(u, places.tolist(), owners, many, strict=True)
    return torch.stack([slow_image(mixer, rows, grid, *where, conv, gap) for rows, *where in images])


def slow_image(
    mixer: Any, u: Tensor, grid: tuple[int, int], places: list[int], owners: Tensor, many: Tensor, conv: str, gap: str
) -> Tensor:
    n = grid[0] * grid[1]
    x, z = mixer.in_proj(u).chunk(2, -1)
    full = x[owners].clone()
    if conv == "zeros":
        for place in set(range(n)) - set(places):
            full[place] = 0
    weight, bias = mixer.conv2d.weight, mixer.conv2d.bias
    image = full.T.reshape(1, -1, *grid)
    full = F.silu(F.conv2d(image, weight, bias, padding=weight.shape[-1] // 2, groups=len(bias)))[0].flatten(1).T
    x = full[places]
    raw, write, read = mixer.x_proj(x).split([mixer.rank, mixer.states, mixer.states], -1)
    step = F.softplus(F.linear(raw, mixer.dt_proj.weight) + 2 * mixer.dt_proj.bias)
    # Of each token of the raster what it has itself, or what stands for it.
    step, write, read = step[owners], write[owners], read[owners]
    rate, y = -mixer.A_log.exp(), torch.zeros_like(x)
    for order, moves in slow_orders(*grid):
        state, missing, last = torch.zeros_like(rate), 0, torch.zeros_like(step[0])
        for t, place in enumerate(order):
            if place not in places:
                missing += 1
                continue
            row = places.index(place)
            taken, asleep = step[t] * many[row], F.softplus(2 * mixer.dt_proj.bias)
            guessed = {"self": step[t], "prev": last, "bias": asleep}.get(gap, 0 * last)
            state = torch.exp((taken + missing * guessed)[:, None] * rate) * state
            state = state + (taken * x[row])[:, None] * (write[t] + mixer.direction_Bs[moves[t]])
            y[row] += state @ read[t] + mixer.D * x[row]
            missing, last = 0, step[t]
    return mixer.out_proj(y * F.silu(z))

"""The mixer of PlainMamba: a convolution on the grid and four selective scans along snakes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenreduce.maps.grid_walks import GridWalk, GridWalks
from tokenreduce.models.vim_mixer import decay_rates, time_step_projection
from tokenreduce.ops.rows import take
from tokenreduce.ops.selective_scan import selective_scan


class PlainMambaMixer(nn.Module):
    """`(B, L, width)` from tokens of a grid in raster order (Yang et al., arXiv 2403.17695).

    Names of parameters are those of the released weights, which need three oddities of their code: at step t each
    direction takes the value of the token that it visits, but the time step, B and C of token t of the raster; the bias
    of `dt_proj` counts twice; the skip is added in each of the four directions, whose sum is not divided.

    Args:
        width: channels of a token.
        states: numbers that a scan keeps for each inner channel.
        side: of the square that the convolution reads.
        expand: inner channels for each channel.
    """

    def __init__(self, width: int, states: int = 16, side: int = 7, expand: int = 2) -> None:
        super().__init__()
        inner, rank = expand * width, math.ceil(width / 16)
        self.inner, self.rank, self.states = inner, rank, states
        self.in_proj = nn.Linear(width, 2 * inner)
        self.conv2d = nn.Conv2d(inner, inner, side, padding=side // 2, groups=inner)
        self.x_proj = nn.Linear(inner, rank + 2 * states, bias=False)
        self.dt_proj = time_step_projection(rank, inner)
        rates = torch.arange(1, states + 1, dtype=torch.float32).log().repeat(inner, 1)
        self.A_log = nn.Parameter(rates)
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width)
        self.direction_Bs = nn.Parameter(torch.zeros(5, states))
        nn.init.trunc_normal_(self.direction_Bs, std=0.02)

    def forward(self, u: Tensor, walks: GridWalks) -> Tensor:
        """`(B, L, width)` from `u (B, L, width)`, all or some tokens of a grid."""
        x, z = self.in_proj(u).chunk(2, -1)
        x = F.silu(convolved(x, self.conv2d, walks))
        step, write, read = self.x_proj(x).split([self.rank, self.states, self.states], -1)
        step = self.dt_proj(step) + self.dt_proj.bias  # the second time
        rate = decay_rates(self.A_log)
        y = x.new_zeros(())
        for walk in walks.directions:
            y = y + self.scan(x, step, write, read, rate, walk)
        return self.out_proj(y * F.silu(z))

    def scan(self, x: Tensor, step: Tensor, write: Tensor, read: Tensor, rate: Tensor, walk: GridWalk) -> Tensor:
        """`(B, L, inner)`: what one direction gives, in the order of the rows."""
        step, write, read = (take(rows, walk.shown) for rows in (step, write, read))  # type: ignore[arg-type]
        step, decay = walk.steps(step, 2 * self.dt_proj.bias)
        write = write + self.direction_Bs[walk.moves].to(write.dtype)
        return selective_scan(
            x, step, rate, write, read, self.D, None, decay,
            softplus=decay is None, order=walk.order, scale=walk.sizes, reverse=walk.reverse,
        )  # fmt: skip


def convolved(x: Tensor, convolution: nn.Module, walks: GridWalks) -> Tensor:
    """Rows `(B, L, C)` of what `convolution` makes of the grid that rows `x (B, L, C)` fill."""
    image = walks.fill(x).unflatten(1, walks.grid).permute(0, 3, 1, 2)
    return walks.pick(convolution(image).permute(0, 2, 3, 1).flatten(1, 2))

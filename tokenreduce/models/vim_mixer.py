"""The mixer of Vision Mamba: two selective scans, one in each direction, between shared projections."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tokenreduce.maps.walks import Walk
from tokenreduce.ops.causal_conv import causal_conv
from tokenreduce.ops.selective_scan import selective_scan


class VimMixer(nn.Module):
    """`(B, L, width)` from tokens in the order of the scan (Zhu et al., arXiv 2401.09417, "bimamba v2").

    Names of parameters are those of the released weights; the backward direction has the suffix `_b`.

    Args:
        width: channels of a token.
        states: numbers that the scan keeps for each inner channel.
        taps: tokens that the convolution reads.
        expand: inner channels for each channel.
        halved: whether the outputs of the directions are averaged (Vim) or added (VideoMamba).
    """

    def __init__(self, width: int, states: int = 16, taps: int = 4, expand: int = 2, halved: bool = True) -> None:
        super().__init__()
        inner, rank = expand * width, math.ceil(width / 16)
        self.inner, self.rank, self.states, self.taps, self.halved = inner, rank, states, taps, halved
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        for end in ("", "_b"):
            setattr(self, f"conv1d{end}", nn.Conv1d(inner, inner, taps, groups=inner, padding=taps - 1))
            setattr(self, f"x_proj{end}", nn.Linear(inner, rank + 2 * states, bias=False))
            setattr(self, f"dt_proj{end}", time_step_projection(rank, inner))
            rates = torch.arange(1, states + 1, dtype=torch.float32).log().repeat(inner, 1)
            setattr(self, "A_log" if not end else "A_b_log", nn.Parameter(rates))
            setattr(self, f"D{end}", nn.Parameter(torch.ones(inner)))
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, u: Tensor, walks: tuple[Walk, Walk] | None = None) -> Tensor:
        """`(B, L, width)` from `u (B, L, width)`; `walks`: how each direction goes over the rows, None: as they stand,
        from the first to the last and back."""
        x, z = self.in_proj(u).chunk(2, -1)
        ahead, back = walks or (Walk(), Walk())
        y = self.scan(x, z, ahead, "") + self.scan(x, z, back, "_b")
        return self.out_proj(y / 2 if self.halved else y)

    def scan(self, x: Tensor, z: Tensor, walk: Walk, end: str) -> Tensor:
        """The gated output `(B, L, inner)` of the direction whose parameters end so."""
        reverse, conv = bool(end), getattr(self, f"conv1d{end}")
        x = causal_conv(x, conv.weight[:, 0], conv.bias, taps=walk.taps, reverse=reverse)
        shown = getattr(self, f"x_proj{end}")(x)
        step, write, read = shown.split([self.rank, self.states, self.states], -1)
        step = getattr(self, f"dt_proj{end}")(step)
        rate = decay_rates(getattr(self, "A_b_log" if end else "A_log"))
        skip = getattr(self, f"D{end}")
        step, decay = walk.steps(step, getattr(self, f"dt_proj{end}").bias)
        return selective_scan(
            x, step, rate, write, read, skip, z, decay,
            softplus=decay is None, order=walk.order, scale=walk.sizes, reverse=reverse,
        )  # fmt: skip


def decay_rates(logs: Tensor) -> Tensor:
    """The rates `(E, N)` of a scan from their logs, in fp32 or fp64."""
    return -torch.exp(logs if logs.dtype == torch.float64 else logs.float())


def time_step_projection(rank: int, inner: int) -> nn.Linear:
    """A projection whose steps start between 0.001 and 0.1 after softplus, as in Mamba."""
    layer = nn.Linear(rank, inner)
    nn.init.uniform_(layer.weight, -(rank**-0.5), rank**-0.5)
    step = torch.exp(torch.rand(inner) * (math.log(0.1) - math.log(0.001)) + math.log(0.001)).clamp_min(1e-4)
    with torch.no_grad():
        layer.bias.copy_(step + torch.log(-torch.expm1(-step)))
    return layer

"""Inputs of selective scans, as slices of wider tensors, which is how models have them."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor

# Half of all: any six of them in every combination.
OPTIONS = [
    dict(zip(("gate", "decay", "order", "softplus", "skip", "reverse", "scale"), values, strict=True))
    for values in product((True, False), repeat=7) if sum(values) % 2 == 0
]  # fmt: skip


def scan_inputs(
    batch: int, length: int, width: int, states: int, *, gate: bool = True, decay: bool = False, order: bool = False,
    softplus: bool = True, skip: bool = True, reverse: bool = False, scale: bool = False,
    dtype: torch.dtype = torch.float32, seed: int = 0,
) -> list[Any]:  # fmt: skip
    """The thirteen arguments of the operator `selective_scan`."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    x, z = normal(batch, length, 2 * width).to(dtype).chunk(2, -1)
    write, read = normal(batch, length, 3 + 2 * states).to(dtype)[..., 3:].chunk(2, -1)
    step = normal(batch, length, width)
    rate = -torch.rand(width, states, generator=g, dtype=torch.float64) - 0.1
    walk = torch.stack([torch.randperm(length, generator=g) for _ in range(batch)])
    wide = dtype if dtype == torch.float64 else torch.float32
    return [
        x, (step if softplus else step.abs()).to(dtype), rate.to(wide), write, read,
        normal(width).to(wide) if skip else None, z if gate else None,
        normal(batch, length, width).abs().to(dtype) if decay else None,
        normal(width).to(wide) if softplus else None, walk if order else None,
        torch.randint(1, 5, (batch, length), generator=g).float() if scale else None, softplus, reverse,
    ]  # fmt: skip


def leaves(given: list[Any]) -> list[Any]:
    """The same with tensors that want gradients: the first nine."""
    return [None if t is None else t.detach().clone().requires_grad_() for t in given[:9]] + given[9:]

"""Inputs that are the same on every machine and in every version, for what came out of the authors' code."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def waves(*shape: int, start: int = 1) -> Tensor:
    """Numbers between -1 and 1 without a pattern, of `shape`: sines of squares, rounded to 2^-12."""
    count = math.prod(shape)
    values = [round(math.sin(0.1 * (i + start) ** 2) * 4096) / 4096 for i in range(count)]
    return torch.tensor(values).view(shape)

"""The smallest kernel: whether Triton compiles and launches at all."""

from __future__ import annotations

import torch
import triton
from triton import language as tl


@triton.jit
def _write_one(out):
    tl.store(out, 1)


def probe() -> None:
    """Raises: whatever Triton raises where it cannot compile or launch."""
    _write_one[(1,)](torch.empty(1, dtype=torch.int32, device="cuda"))

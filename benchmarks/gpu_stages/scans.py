"""The selective scan and its gradients as calls, on inputs as Vision Mamba has them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gpu_stages.operators import Tensors
from tokenreduce.ops.selective_scan import gradients_now, scan_now

STATES = 16


def scans(device: torch.device, dtype: torch.dtype, batch: int, n: int, width: int) -> dict[str, Callable[[], Tensors]]:
    """Calls by name, of a walk along the rows and of one backwards in another order with decays of its own."""
    torch.manual_seed(n)

    def normal(*shape: int, kind: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, device=device, dtype=kind)

    x, z = normal(batch, n, 2 * width, kind=dtype).chunk(2, -1)
    write, read = normal(batch, n, 2 * STATES, kind=dtype).chunk(2, -1)
    step, decay, grad = (normal(batch, n, width, kind=dtype) for _ in range(3))
    rate = -torch.rand(width, STATES, device=device) - 0.1
    order = torch.stack([torch.randperm(n, device=device) for _ in range(batch)])
    given = (x, step, rate, write, read, normal(width), z)
    walks = {
        "scan": (*given, None, normal(width), None, None, True, False),
        "scan in an order": (*given, decay.abs(), normal(width), order, None, True, True),
    }
    calls: dict[str, Callable[[], Tensors]] = {}
    for name, walk in walks.items():
        calls[name] = partial(forwards, walk)
        calls[f"{name}, gradients"] = partial(backwards, grad, walk)
    return calls


def forwards(walk: tuple[Any, ...]) -> Tensors:
    return [scan_now(*walk)]


def backwards(grad: Tensor, walk: tuple[Any, ...]) -> Tensors:
    with torch.inference_mode(False), torch.no_grad():  # the reference needs autograd
        return gradients_now(grad, *walk)

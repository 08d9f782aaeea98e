"""KKZ seeding (farthest first): the reference in PyTorch, and a numba kernel that takes the same decisions faster."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tokenreduce.ops.modes import dispatch_modes, function_transform, is_tracing
from tokenreduce.ops.tracing import repeat, to_onnx


def farthest_first(distance: Tensor, first: Tensor, count: int) -> Tensor:
    """`(B, count)`: `first (B,)`, then again and again the point farthest from its nearest chosen one.

    Ties go to the lowest index; no point is chosen twice. Uses numba on the CPU where it is installed; while compiling,
    exporting or tracing the reference with its `count` rounds is used, for ONNX a loop.

    Args:
        distance: `(B, N, N)` in fp32, or any increasing function of the distance.
    """
    if to_onnx():
        return farthest_first_loop(distance, first, count)
    # A subclass is a fake tensor or another one without memory to show to numba, as are tensors of transforms.
    plain = type(distance) is Tensor and distance.device.type == "cpu" and function_transform() is None
    if plain and not torch.compiler.is_compiling() and not is_tracing() and not dispatch_modes():
        kernel = numba_kernel()
        if kernel is not None:
            chosen = torch.empty(distance.shape[0], count, dtype=torch.long, device="cpu")
            images = zip(distance.detach().contiguous().numpy(), first.tolist(), chosen.numpy(), strict=True)
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                list(pool.map(lambda image: kernel(*image), images))
            return chosen
    return farthest_first_reference(distance, first, count)


def farthest_first_reference(distance: Tensor, first: Tensor, count: int) -> Tensor:
    """`farthest_first` in PyTorch: one round for each chosen point."""
    newest, chosen = first[:, None], [first[:, None]]
    gap = torch.full_like(distance[:, 0], float("inf"))
    for _ in range(count - 1):
        row = distance.gather(1, newest[..., None].expand(-1, -1, distance.shape[2]))[:, 0]
        gap = torch.minimum(gap, row).scatter(1, torch.cat(chosen, 1), -1.0)
        newest = gap.argmax(1, keepdim=True)
        chosen.append(newest)
    return torch.cat(chosen, 1)


def farthest_first_loop(distance: Tensor, first: Tensor, count: int) -> Tensor:
    """`farthest_first` as a loop of the exported graph."""
    places = torch.arange(count, device=distance.device)

    def step(done: Tensor, newest: Tensor, gap: Tensor, chosen: Tensor) -> tuple[Tensor, ...]:
        row = distance.gather(1, newest[..., None].expand(-1, -1, distance.shape[2]))[:, 0]
        gap = torch.minimum(gap, row).scatter(1, newest, -1.0)
        newest = gap.argmax(1, keepdim=True)
        return newest, gap, torch.where(places == done + 1, newest, chosen)

    gap = torch.full_like(distance[:, 0], float("inf"))
    return repeat(step, count - 1, first[:, None], gap, first[:, None].expand(-1, count).clone())[2]


@cache
def numba_kernel() -> Callable[..., Any] | None:
    """The compiled kernel, or None without numba."""
    try:
        from tokenreduce.ops import farthest_first_numba as kkz_numba
    except ImportError:
        return None
    return kkz_numba.farthest_first

"""Whether Triton can run here, and how its kernels are started."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from tokenreduce.ops.modes import dispatch_modes
from tokenreduce.ops.tracing import constant_result

NAMESPACE = "tokenreduce_triton"
OLDEST = (7, 5)  # compute capability that Triton supports


def interpreted() -> bool:
    """Whether Triton interprets its kernels, which then run on tensors of the CPU: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@constant_result
def why_not() -> str:
    """Why Triton's kernels cannot run in this process; empty if they can."""
    return _why_not()


@lru_cache(maxsize=1)
def _why_not() -> str:
    if find_spec("triton") is None:
        return "Triton is not installed; PyTorch for CUDA on Linux comes with it"
    if interpreted():
        return ""
    if not torch.cuda.is_available():
        return "PyTorch sees no GPU here"
    if torch.version.cuda is not None and torch.cuda.get_device_capability() < OLDEST:
        return f"the GPU has compute capability {'.'.join(map(str, torch.cuda.get_device_capability()))}, below 7.5"
    try:
        from tokenreduce.ops.triton.probe import probe

        probe()
    except Exception as error:  # no C compiler, no driver it knows, no writable cache: many classes, one consequence
        return f"Triton cannot compile here: {str(error).strip()[-300:]}"
    return ""


def has_assembly() -> bool:
    """Whether kernels may hold instructions of NVIDIA's GPUs."""
    return torch.version.cuda is not None and not interpreted()


def is_hopper(x: Tensor) -> bool:
    """Whether `x` is on a GPU of compute capability 9 or newer."""
    return x.is_cuda and torch.cuda.is_available() and torch.cuda.get_device_capability(x.device) >= (9, 0)


def start(kernel: Any, x: Tensor) -> Any:
    """`kernel` to be launched as `start(kernel, x)[grid](...)` for a tensor `x`: on its device, and in a way that
    tracers see."""
    if is_compiling() or dispatch_modes():
        return torch.library.wrap_triton(kernel)
    if x.is_cuda and x.device.index != torch.cuda.current_device():
        return _OnDevice(kernel, x.device)
    return kernel


class _OnDevice:
    """A kernel launched on another device than the current one."""

    def __init__(self, kernel: Any, device: torch.device) -> None:
        self.kernel, self.device = kernel, device

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            with torch.cuda.device(self.device):
                self.kernel[grid](*args, **kwargs)

        return launch


def operator(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: `function`, which launches kernels by `start`, and beside it `function.operator`, the same as one
    operator for `torch.compile`, exports and fake tensors, which see through it."""
    made = torch.library.triton_op(f"{NAMESPACE}::{function.__name__}", function, mutates_args=())
    function.operator = made  # type: ignore[attr-defined]
    return function

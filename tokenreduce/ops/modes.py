"""Modes of PyTorch: those in which matching runs, and those in which something looks at every operator."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from typing import Any

import torch

from tokenreduce.ops.tracing import constant_result


def asking_torch(path: str) -> Callable[[], Any]:
    """The function `path` of PyTorch's private API, which no public one replaces; it says yes where it is missing, so
    that every kernel leaves the work to PyTorch's own operators, which are always right."""
    try:
        return reduce(getattr, path.split("."), torch)  # type: ignore[return-value]
    except AttributeError:
        log = logging.getLogger("tokenreduce")
        log.warning("PyTorch %s has no torch.%s: no compiled kernel is used", torch.__version__, path)
        return lambda: True


# All private names of PyTorch that the library asks. Whoever calls them imports them by name: between two matrix
# products every look into another module costs a wait for slow memory.
dispatch_modes = asking_torch("_C._len_torch_dispatch_stack")  # how many look at operators: counting, fake tensors
function_transform = asking_torch("_C._functorch.peek_interpreter_stack")  # the innermost of torch.func, or None
is_tracing = asking_torch("_C._is_tracing")  # torch.jit.is_tracing asks more first


def capturing() -> bool:
    """Whether work on the current stream goes into a CUDA graph instead of running."""
    # Without a driver PyTorch raises instead of saying no; before the first tensor on a GPU there is no capture.
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def without_gradients() -> AbstractContextManager[Any]:
    """Matching has no gradient."""
    return torch.no_grad() if torch.is_grad_enabled() else nullcontext()


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Matching runs in fp32 also under autocast."""
    enabled = knows_autocast(device.type) and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if enabled else nullcontext()


@constant_result
def knows_autocast(device: str) -> bool:
    """Whether this kind of device has autocast at all; the compiler of torch 2.11 cannot trace the question."""
    return torch.amp.is_autocast_available(device)

"""Modes of PyTorch: those in which matching runs, and those in which something looks at every operator."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from typing import Any

import torch

from tokenreduce.ops.tracing import constant_result


def yes() -> bool:
    """The answer in the place of a question that PyTorch no longer has."""
    return True


def asking_torch(path: str, otherwise: Callable[[], Any] = yes, then: str = "no compiled kernel is used") -> Any:
    """The function `path` of PyTorch's private API, which no public one replaces, or what stands in its place where it
    is missing. The answer yes leaves the work to PyTorch's own operators, which are always right.
    """
    try:
        return reduce(getattr, path.split("."), torch)
    except AttributeError:
        logging.getLogger("tokenreduce").warning("PyTorch %s has no torch.%s: %s", torch.__version__, path, then)
        return otherwise


# All private functions of PyTorch that the library calls. Whoever calls them imports them by name: between two matrix
# products every look into another module costs a wait for slow memory.
dispatch_modes = asking_torch("_C._len_torch_dispatch_stack")  # how many look at operators: counting, fake tensors
function_transform = asking_torch("_C._functorch.peek_interpreter_stack")  # the innermost of torch.func, or None
is_tracing = asking_torch("_C._is_tracing")  # torch.jit.is_tracing asks more first
# A block in which no mode sees the operators: what a model costs is counted on tensors of its own also in the middle
# of an export, which would else record the counting, or count on tensors without data.
without_modes = asking_torch(
    "utils._python_dispatch._disable_current_modes", nullcontext, "budgets are not spread anew within an export"
)
# The same for the subclasses of tensors.
without_subclasses = asking_torch("_C._DisableTorchDispatch", nullcontext, "sizes in attention may not run on fakes")
# The number of the backward pass that runs in this thread, or -1.
backward_pass = asking_torch("_C._current_graph_task_id", lambda: -1, "gradient checkpointing is refused less clearly")


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

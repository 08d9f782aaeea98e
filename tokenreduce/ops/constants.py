"""Small tensors that follow from plain numbers alone: made once where they can be kept, anew everywhere else.

Nothing is kept of what only lives for a while: a tensor that fake tensors, a trace, a function transform or the capture
of a CUDA graph has made would break every later forward of the process.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from tokenreduce.errors import InvalidValueError
from tokenreduce.ops.modes import capturing, dispatch_modes, function_transform, is_tracing

Numbers = tuple[int, ...] | tuple[float, ...]

# Never emptied: a captured graph goes on reading what it found here. Few and small, one for each method and input size.
_on_devices: dict[tuple[Numbers, torch.dtype, torch.device], Tensor] = {}


def counting(count: int, device: torch.device, step: int = 1) -> Tensor:
    """0, step, 2 step ... as an int64 tensor `(count,)`; do not write to it, it may be shared."""
    if device.type == "cpu" and not watched() and not capturing():
        return _kept_counting(count, step)
    # Elsewhere it is one launch, and no tensor of one stream that another reads without waiting.
    return _counting(count, device, step)


def constant(numbers: Numbers, device: torch.device) -> Tensor:
    """`numbers` as a tensor `(K,)`, int64 or fp32; do not write to it, it may be shared.

    Raises: ValueError if it would have to be copied to a GPU while a CUDA graph is being captured.
    """
    dtype = torch.float32 if numbers and isinstance(numbers[0], float) else torch.long
    if watched():
        return torch.tensor(numbers, dtype=dtype, device=device)
    if device.type == "cpu":
        return torch.tensor(numbers, dtype=dtype, device=device) if capturing() else _kept_constant(numbers, dtype)
    return _kept_on_device(numbers, dtype, device)


def watched() -> bool:
    """Whether tensors made now belong to a trace, a dispatch mode (fake tensors, counting) or a function transform."""
    if torch.compiler.is_compiling():
        return True
    return bool(dispatch_modes()) or is_tracing() or function_transform() is not None


def _counting(count: int, device: torch.device, step: int) -> Tensor:
    numbers = torch.arange(count, dtype=torch.long, device=device)
    return numbers if step == 1 else numbers * step


# A tensor made in inference mode could not take part in training later.
@lru_cache(maxsize=2048)
def _kept_counting(count: int, step: int) -> Tensor:
    with torch.inference_mode(False):
        return _counting(count, torch.device("cpu"), step)


@lru_cache(maxsize=512)
def _kept_constant(numbers: Numbers, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(numbers, dtype=dtype, device="cpu")


def _kept_on_device(numbers: Numbers, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The copy on a GPU, which a capture may read but not make: copying from the host waits for it."""
    key = numbers, dtype, device
    kept = _on_devices.get(key)
    if kept is None:
        if capturing():
            raise InvalidValueError(
                f"{len(numbers)} numbers must be copied to {device}, which cannot be captured in a CUDA graph; run the "
                "model once on an input of this shape before the capture"
            )
        with torch.inference_mode(False):
            made = torch.tensor(numbers, dtype=dtype, device=device)  # done when it returns, for all streams
        kept = _on_devices.setdefault(key, made)  # of two threads that make it both take the first
    return kept

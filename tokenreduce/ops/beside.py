"""Work on a second stream of a GPU while the current one goes on."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

from tokenreduce.ops.modes import capturing

Result = TypeVar("Result")


def pays(x: Tensor) -> bool:
    """Whether a second stream saves time: in a CUDA graph that is being captured. In eager mode the host is what takes
    time."""
    return x.is_cuda and not torch.compiler.is_compiling() and capturing()


def beside(device: torch.device, work: Callable[[], Result]) -> Callable[[], Result]:
    """Start `work()` on a second stream; what comes back makes the current stream wait for it and gives its result.

    Call it before the next work starts: memory of a result that is no longer needed is used again on the second stream,
    which waits for the current one only when it starts.
    """
    main, second = torch.cuda.current_stream(device), _stream(device)
    second.wait_stream(main)
    with torch.cuda.stream(second):
        result = work()

    def join() -> Result:
        main.wait_stream(second)
        return result

    return join


@lru_cache(maxsize=64)
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)

"""A second process in which Triton interprets its kernels.

Triton reads TRITON_INTERPRET when a kernel is defined. In a process that has imported one, it is too late to set it.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from typing import Any


def in_interpreter(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a function of a module returns or raises there. Arguments and results are pickled."""
    return child().submit(function, *args, **kwargs).result()


@lru_cache(maxsize=1)
def child() -> ProcessPoolExecutor:
    """One process for all tests of this one."""
    made = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=begin)
    atexit.register(made.shutdown)
    return made


def begin() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    import torch

    torch.set_num_threads(1)

"""A second process in which Triton interprets its kernels.

Triton reads TRITON_INTERPRET when a kernel is defined. In a process that has imported one, it is too late to set it.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from importlib import import_module
from multiprocessing import get_context
from typing import Any


def in_interpreter(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a function of a module returns or raises there. Arguments and results are pickled."""
    return child().submit(function, *args, **kwargs).result()


def by_name(module: str, name: str, arguments: Mapping[str, Any]) -> Any:
    """Calls a function of a module: what Hypothesis makes of one cannot be pickled itself."""
    return getattr(import_module(module), name)(**arguments)


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
    repair_bfloat16()


def repair_bfloat16() -> None:
    """Triton's interpreter cuts fp32 off to bfloat16, where GPUs round, and multiplies matrices of its bits."""
    import torch
    from triton import language as tl
    from triton.runtime import interpreter

    convert, multiply = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def rounded(data: Any, source: Any, target: Any, rounding: Any) -> Any:
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(data, source, target, rounding)
        return torch.tensor(data).bfloat16().view(torch.int16).numpy().view("uint16")

    def widened(x: Any) -> Any:
        if x.dtype.scalar != tl.bfloat16:
            return x
        return interpreter.TensorHandle(convert(x.data, tl.bfloat16, tl.float32, None).view("float32"), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *args: Any) -> Any:
        return multiply(self, widened(a), widened(b), *args)

    interpreter._convert_float = rounded
    interpreter.InterpreterBuilder.create_dot = create_dot

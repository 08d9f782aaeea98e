"""Which kernel runs: the compiled one where it can, the PyTorch reference everywhere else.

`choose("merge_apply", x)` is the compiled kernel for the tensor x, or None; the reference follows the call.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling, is_exporting
from torch.nn import Parameter

from tokenreduce.errors import InvalidValueError, unknown
from tokenreduce.ops.modes import dispatch_modes, function_transform, is_tracing
from tokenreduce.ops.native import build, build_cuda, fakes
from tokenreduce.ops.native.fakes import NAMESPACE
from tokenreduce.ops.tracing import constant_result

KERNELS = {
    "bipartite_match": "pairs of a bipartition by cosine, without the matrix of all scores (tome, dsm, tofu)",
    "attention_statistics": "what tokens receive and keep of attention, without its matrix (gtp, mctf ...)",
    "pitome_energy": "the energy of pitome, without the matrix of all cosines",
    "ward_match": "the rounds of ward in one call",
    "merge_apply": "merged features and sizes in one pass",
    "bipartite_merge": "bipartite_match and merge_apply in one call (tome)",
    "size_bias": "what sizes add to attention, protected tokens included",
    "restore_apply": "tokens that come back with the change since, in one pass",
}
CHOICES = {
    "auto": "compiled where it can run",
    "reference": "PyTorch everywhere",
    "cpu": "compiled for the CPU, an error where it cannot run",
    "cuda": "compiled for CUDA, an error where it cannot run",
}
# Where the reference runs whatever was chosen: others look at the operators.
WATCHED = "a tensor subclass or a dispatch mode (counting, fake tensors) sees PyTorch's own operators only"
TRACED = "traces and function transforms see PyTorch's own operators only"
EXPORTED = "exported programs take the reference, which runs without this library"
NOT_FOR_CUDA = "it is not among those for CUDA"
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

_kernels = getattr(torch.ops, NAMESPACE)  # looked up once, as the questions of `ops.modes` are

_chosen = os.environ.get("TOKENREDUCE_KERNELS", "auto")
if _chosen not in CHOICES:
    raise unknown("TOKENREDUCE_KERNELS", _chosen, CHOICES)


def choose(name: str, x: Tensor) -> Callable[..., Any] | None:
    """The compiled kernel `name` for `x`, or None where the reference is to run.

    Raises: ValueError if the compiled one is forced and cannot run.
    """
    reason = why_not(name, x)
    if not reason:
        return getattr(_kernels, name)
    if _chosen in ("cpu", "cuda") and reason not in (WATCHED, TRACED, EXPORTED, NOT_FOR_CUDA):
        raise InvalidValueError(f'{name} is forced to "{_chosen}" but cannot run: {reason}; choose "auto"')
    return None


def why_not(name: str, x: Tensor) -> str:
    """Why the compiled kernel `name` does not take `x`; empty if it does."""
    if _chosen == "reference":
        return "the reference is forced"
    if is_compiling():
        return why_not_compiled(x)
    device = "cpu" if x.is_cpu else x.device.type
    if device not in ("cpu", "cuda") or _chosen not in ("auto", device):
        return f"there are none for {device}" if _chosen == "auto" else f"the tensor is on {device}"
    if device == "cuda" and _chosen == "auto":
        return "those for CUDA have run on no GPU yet and are taken only when forced"
    if device == "cuda" and name not in build_cuda.CUDA:
        return NOT_FOR_CUDA
    if x.dtype not in DTYPES:
        return f"{x.dtype} is not supported"
    if type(x) not in (Tensor, Parameter) or dispatch_modes():
        return WATCHED
    if is_tracing() or function_transform() is not None:
        return TRACED
    if x.requires_grad and torch.is_grad_enabled() and name != "merge_apply":
        return "it has no backward"
    return load() or (load_cuda() if device == "cuda" else "")


def why_not_compiled(x: Tensor) -> str:
    """The same inside of `torch.compile`, where the kernel becomes one operator."""
    if is_exporting():
        return EXPORTED
    if not x.is_cpu or _chosen == "cuda":
        return "compiled models take the reference on other devices than the CPU"
    if x.dtype not in DTYPES:
        return f"{x.dtype} is not supported"
    if x.requires_grad and torch.is_grad_enabled():
        return "it has no backward that the compiler can trace"
    return load_constant()


@contextmanager
def using(choice: str) -> Iterator[None]:
    """Take kernels by this choice, one of `CHOICES`, in all threads; the environment variable TOKENREDUCE_KERNELS does
    so for a whole process."""
    global _chosen
    if choice not in CHOICES:
        raise unknown("choice of kernels", choice, CHOICES)
    before, _chosen = _chosen, choice
    try:
        yield
    finally:
        _chosen = before


@lru_cache(maxsize=1)
def load() -> str:
    """Load the library for the CPU, compiled now if it never was; why it cannot be, or nothing."""
    reason = _load(build.library, build.compile_library)
    if not reason:
        fakes.register()
    return reason


@constant_result
def load_constant() -> str:
    """`load`, run by the compiler instead of traced."""
    return load()


@lru_cache(maxsize=1)
def load_cuda() -> str:
    """The same for CUDA, after `load`."""
    return build_cuda.why_not() or _load(build_cuda.library, build_cuda.compile_library)


def _load(find: Callable[[], Path], compile_it: Callable[[Path], None]) -> str:
    try:
        path = find()
        if not path.exists():
            log = logging.getLogger("tokenreduce")
            log.warning("compiling kernels, once: up to a minute (TOKENREDUCE_KERNELS=reference does without)")
            build.build(path, compile_it)
        torch.ops.load_library(str(path))
    except (build.BuildError, OSError, ImportError) as error:
        return str(error)
    return ""


def status() -> list[dict[str, str]]:
    """One row a kernel: its name, what it does, and why it is not usable on the CPU and on a GPU (empty if it is)."""
    gpu = "" if torch.cuda.is_available() else "PyTorch sees no GPU here"
    cpu, cuda = load(), gpu or load() or load_cuda()
    return [
        {"kernel": name, "summary": summary, "cpu": cpu, "cuda": cuda if name in build_cuda.CUDA else NOT_FOR_CUDA}
        for name, summary in KERNELS.items()
    ]

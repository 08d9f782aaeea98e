"""Which kernel runs: the compiled one where it can, the PyTorch reference everywhere else.

`choose("merge_apply", x)` is the compiled kernel for the tensor x, or None; the reference follows the call.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn import Parameter

from tokenreduce.errors import InvalidValueError, unknown
from tokenreduce.ops.modes import dispatch_modes, function_transform, is_tracing
from tokenreduce.ops.native import build, build_cuda, fakes
from tokenreduce.ops.native.fakes import NAMESPACE
from tokenreduce.ops.tracing import constant_result, exporting
from tokenreduce.ops.triton import launching

KERNELS = {
    "bipartite_match": "pairs of a bipartition by cosine, without the matrix of all scores (tome, dsm, tofu)",
    "attention_statistics": "what tokens receive and keep of attention, without its matrix (gtp, mctf ...)",
    "pitome_energy": "the energy of pitome, without the matrix of all cosines",
    "ward_match": "the rounds of ward in one call",
    "ward_match_attended": "the same with class_rows, and what tokens weigh by it",
    "ward_cluster": "agglomerative clustering by Ward's criterion, without the matrix of all costs (ward)",
    "ward_cluster_attended": "the same with class_rows, and what tokens weigh by it",
    "ward_in_place": "the same of directions and places, where models scan their tokens, in their order (ward)",
    "merge_apply": "merged features and sizes in one pass",
    "bipartite_merge": "bipartite_match and merge_apply in one call (tome)",
    "size_bias": "what sizes add to attention, protected tokens included",
    "restore_apply": "tokens that come back with the change since, in one pass",
    "krige_apply": "tokens that come back with the change since, predicted for each (ward)",
    "class_rows": "attention of class tokens, mean over heads (evit, ward ...)",
    "fuse_rest": "the map of evit without a sort",
    "fuse_attended": "the same with class_rows",
    "merge_fused": "merge_apply where all sources join one output (evit)",
    "selective_scan": "the recurrence of state-space models, with step, skip and gate",
    "selective_scan_backward": "its gradients",
    "order_outputs": "outputs of maps in the order in which such models scan them",
    "scan_walks": "how its two directions walk over the tokens that are left",
    "causal_conv": "their short convolution, with taps of any rows, and SiLU",
    "causal_conv_backward": "its gradients",
}
NOT_TRITON = {
    "attention_statistics", "pitome_energy", "ward_in_place", "order_outputs", "scan_walks", "causal_conv",
    "causal_conv_backward", "krige_apply",
}  # fmt: skip
ONLY_TRITON = {"fuse_rest", "fuse_attended", "merge_fused", "ward_cluster_attended", "ward_match_attended"}
# What each kind of kernel has.
TRITON = frozenset(KERNELS) - NOT_TRITON
COMPILED = frozenset(KERNELS) - ONLY_TRITON
CHOICES = {
    "auto": "compiled for the CPU and Triton on a GPU, where they can run",
    "reference": "PyTorch everywhere",
    "cpu": "compiled for the CPU, an error where it cannot run",
    "cuda": "compiled for CUDA, an error where it cannot run",
    "triton": "Triton, an error where it cannot run",
}
# Where the reference runs whatever was chosen: others look at the operators.
WATCHED = "a tensor subclass or a dispatch mode (counting, fake tensors) sees PyTorch's own operators only"
TRACED = "traces and function transforms see PyTorch's own operators only"
EXPORTED = "exported programs take the reference, which runs without this library"
NONE = "there is none of this name; the reference runs"
FORCED = ("cpu", "cuda", "triton")
MOST_TOKENS = 16384  # of one image, for Triton
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INDICES = {"order_outputs": (torch.int64,)}  # what kernels take that see no tokens

_kernels = getattr(torch.ops, NAMESPACE)  # looked up once, as the questions of `ops.modes` are

_chosen = os.environ.get("TOKENREDUCE_KERNELS") or "auto"  # a wrong one is told on first use, not while importing


def check() -> None:
    """Raise if the environment variable TOKENREDUCE_KERNELS has a value that is none of `CHOICES`."""
    if _chosen not in CHOICES:
        raise unknown("TOKENREDUCE_KERNELS", _chosen, CHOICES)


def choose(name: str, x: Tensor) -> Callable[..., Any] | None:
    """The kernel `name` for `x`, or None where the reference is to run.

    Raises: ValueError if a kernel is forced and cannot run.
    """
    reason = why_not(name, x)
    if not reason:
        return getattr(_kernels, name) if x.is_cpu and _chosen != "triton" else _for_gpu(name)
    if _chosen in FORCED and reason not in (WATCHED, TRACED, EXPORTED, NONE):
        raise InvalidValueError(f'{name} is forced to "{_chosen}" but cannot run: {reason}; choose "auto"')
    return None


def _for_gpu(name: str) -> Callable[..., Any]:
    if _chosen == "cuda":
        return getattr(_kernels, name)
    from tokenreduce.ops.triton.table import OPERATORS  # imports Triton

    made = OPERATORS[name]
    return made.operator if is_compiling() or dispatch_modes() else made  # type: ignore[attr-defined]


def why_not(name: str, x: Tensor) -> str:
    """Why no kernel `name` takes `x`; empty if one does."""
    check()
    if _chosen == "reference":
        return "the reference is forced"
    triton = _chosen == "triton" or (_chosen == "auto" and x.is_cuda)
    if name not in (TRITON if triton else build_cuda.CUDA if _chosen == "cuda" else COMPILED):
        return NONE
    if triton:
        return why_not_triton(name, x)
    if is_compiling():
        return why_not_compiled(name, x)
    device = "cpu" if x.is_cpu else x.device.type
    if device not in ("cpu", "cuda") or _chosen not in ("auto", device):
        return f"there are none for {device}" if _chosen == "auto" else f"the tensor is on {device}"
    if x.dtype not in INDICES.get(name, DTYPES):
        return f"{x.dtype} is not supported"
    if type(x) not in (Tensor, Parameter) or dispatch_modes():
        return WATCHED
    if is_tracing() or function_transform() is not None:
        return TRACED
    if x.requires_grad and torch.is_grad_enabled() and name != "merge_apply":
        return "it has no backward"
    return load() or (load_cuda() if device == "cuda" else "")


def why_not_compiled(name: str, x: Tensor) -> str:
    """The same inside of `torch.compile`, where the kernel becomes one operator."""
    if exporting():
        return EXPORTED
    if not x.is_cpu or _chosen == "cuda":
        return "compiled models take no kernels of csrc/cuda"
    if x.dtype not in INDICES.get(name, DTYPES):
        return f"{x.dtype} is not supported"
    if x.requires_grad and torch.is_grad_enabled():
        return "it has no backward that the compiler can trace"
    return load_constant()


def why_not_triton(name: str, x: Tensor) -> str:
    """The same for kernels in Triton; forced, they also run for fake tensors, as operators."""
    if exporting():
        return EXPORTED
    if x.dtype not in DTYPES:
        return f"{x.dtype} is not supported"
    compiling = is_compiling()
    if not compiling and _chosen == "auto" and (type(x) not in (Tensor, Parameter) or dispatch_modes()):
        return WATCHED
    if not compiling and (is_tracing() or function_transform() is not None):
        return TRACED
    if x.requires_grad and torch.is_grad_enabled() and (compiling or name != "merge_apply"):
        return "it has no backward"
    tokens = x.shape[-1] if name in ("fuse_rest", "size_bias") else x.shape[-2]
    if tokens > MOST_TOKENS:
        return f"{tokens} tokens are more than the {MOST_TOKENS} among which one program chooses"
    if not x.is_cuda and not launching.interpreted():
        return f"the tensor is on {x.device.type}"
    return "" if not compiling and dispatch_modes() else launching.why_not()


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
            build.build(path, compile_it)
        torch.ops.load_library(str(path))
    except (build.BuildError, OSError, ImportError) as error:
        return str(error)
    return ""


def status() -> list[dict[str, str]]:
    """One row a kernel: its name, what it does, and why it is not usable compiled for the CPU, in Triton on a GPU and
    compiled for CUDA (empty if it is)."""
    gpu = "" if torch.cuda.is_available() else "PyTorch sees no GPU here"
    cpu, triton = load(), launching.why_not()
    cuda = gpu or cpu or load_cuda()
    return [
        {
            "kernel": name,
            "summary": summary,
            "cpu": cpu if name in COMPILED else NONE,
            "triton": triton if name in TRITON else NONE,
            "cuda": cuda if name in build_cuda.CUDA else NONE,
        }
        for name, summary in KERNELS.items()
    ]

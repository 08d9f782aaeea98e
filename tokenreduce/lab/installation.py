"""What is installed on this machine and what of it the library can use: the first thing to know of a fault."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from tokenreduce.lab.environment import LIBRARIES
from tokenreduce.ops import sized_attention
from tokenreduce.ops.native import dispatch
from tokenreduce.patching.finding import families
from tokenreduce.reducers.registry import methods


def installation() -> dict[str, Any]:
    """Versions (None: not installed), devices, why which kernels cannot be used (empty: they can), families by library,
    and methods. The kernels are compiled if they never were."""
    libraries = {name: _version(module, name) for module, name in LIBRARIES.items()}
    return {
        "libraries": {"tokenreduce": version("tokenreduce")} | libraries,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "devices": _devices(),
        "kernels": {name: _reason(name) for name in ("cpu", "triton", "cuda")},
        "attention": sized_attention.status(),
        "families": families(),
        "methods": methods(),
    }


def _version(name: str, distribution: str) -> str | None:
    if name in sys.modules and hasattr(sys.modules[name], "__version__"):
        return str(sys.modules[name].__version__)  # with how it was built, which the distribution does not say
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _devices() -> list[str]:
    cards = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return ["cpu", *cards, *(["mps"] if torch.backends.mps.is_available() else [])]


def _reason(kind: str) -> str:
    """Why no kernel of this kind can be used."""
    reasons = {row[kind] for row in dispatch.status()} - {dispatch.NONE}
    return "; ".join(sorted(reasons))

"""The versions, the machine and the threads that belong to figures."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

# The libraries whose versions belong to figures and to reports of faults: the module, and how pip calls it.
LIBRARIES = {name: name for name in (
    "torch", "torchvision", "timm", "transformers", "open_clip", "peft", "numpy", "numba", "triton", "onnx",
    "onnxscript", "onnxruntime", "optuna", "safetensors", "torchmetrics", "ray", "pyarrow", "plotly",
)} | {"open_clip": "open_clip_torch"}  # fmt: skip
# Distributions on which kept results depend: a run that goes on with other ones would mix two kinds of figures.
COMPUTING = ("tokenreduce", "torch", "torchvision", "timm", "transformers", "open_clip_torch", "pillow", "pycocotools")


def versions() -> dict[str, str]:
    """Of this library and those that were loaded."""
    loaded = {name: sys.modules[name] for name in LIBRARIES if name in sys.modules}
    numbers = {name: str(module.__version__) for name, module in loaded.items() if hasattr(module, "__version__")}
    return {"tokenreduce": version("tokenreduce"), **numbers}


def installed() -> dict[str, str | None]:
    """Of what decodes and resizes images, and computes, whether it was loaded or not; None if it is not installed."""
    return {name: _installed(name) for name in COMPUTING}


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def environment() -> dict[str, Any]:
    """Of this process, for every JSON file."""
    return {
        **versions(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }


def card_name(device: torch.device | str) -> str:
    """What no other device has: the machine with, of a CUDA device, the number that its card was built with."""
    place = torch.device(device)
    card = torch.cuda.get_device_properties(place) if place.type == "cuda" else None
    return f"{platform.node()} {getattr(card, 'uuid', place)}"


def place_name(device: torch.device | str) -> str:
    """The name of the device, and of its card if it is a CUDA device."""
    place = torch.device(device)
    return str(place) if place.type == "cpu" else f"{place} ({torch.cuda.get_device_name(place)})"

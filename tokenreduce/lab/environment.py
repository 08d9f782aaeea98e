"""The versions, the machine and the threads that belong to figures."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version
from typing import Any

import torch

LIBRARIES = ("torch", "timm", "torchvision", "transformers")


def environment() -> dict[str, Any]:
    """Of this process, for every JSON file."""
    versions: dict[str, Any] = {name: sys.modules[name].__version__ for name in LIBRARIES if name in sys.modules}
    return {
        "tokenreduce": version("tokenreduce"),
        **versions,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }


def place_name(device: torch.device | str) -> str:
    """The name of the device, and of its card if it is a CUDA device."""
    place = torch.device(device)
    return str(place) if place.type == "cpu" else f"{place} ({torch.cuda.get_device_name(place)})"

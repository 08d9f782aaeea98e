"""Modes of PyTorch in which matching runs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def without_gradients() -> AbstractContextManager[Any]:
    """Matching has no gradient."""
    return torch.no_grad() if torch.is_grad_enabled() else nullcontext()


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Matching runs in fp32 also under autocast."""
    enabled = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if enabled else nullcontext()

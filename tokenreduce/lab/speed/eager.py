"""Mode "eager": operators one by one, as PyTorch runs a model that nothing was done to."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from tokenreduce.lab.speed.timing import Call


def ready(model: nn.Module, batch: Tensor) -> Call:
    """A forward of `model` on `batch`."""
    return partial(model, batch)

"""The modes in which `compare` runs all models of a comparison, one file each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tokenreduce.errors import InvalidTypeError, InvalidValueError, unknown
from tokenreduce.lab.speed.compiled import ready as ready_compiled
from tokenreduce.lab.speed.eager import ready as ready_eager
from tokenreduce.lab.speed.graphed import ready as ready_graphed
from tokenreduce.lab.speed.timing import Call

MODES: dict[str, Callable[[nn.Module, Tensor], Call]] = {
    "eager": ready_eager,
    "graph": ready_graphed,
    "compile": ready_compiled,
}


def check_modes(modes: Sequence[str], device: torch.device) -> None:
    """Raises: TypeError for no modes or a string, ValueError for one that is unknown or cannot run on `device`."""
    if isinstance(modes, str) or not modes:
        raise InvalidTypeError(f'modes is {modes!r}; give a list of {", ".join(MODES)}, such as ["eager"]')
    for mode in modes:
        if mode not in MODES:
            raise unknown("mode", mode, MODES)
    if "graph" in modes and device.type != "cuda":
        raise InvalidValueError(f"mode graph is for GPUs, and the input is on {device}; valid there: eager, compile")


def ready(mode: str, name: str, model: nn.Module, batch: Tensor) -> Call:
    """A forward of `model` on `batch` in this mode, ready to be timed.

    Raises: ValueError if the model of this name cannot run so.
    """
    try:
        return MODES[mode](model, batch)
    except RuntimeError as error:  # those of captures and of the compiler
        lines = str(error).splitlines() or [type(error).__name__]
        raise InvalidValueError(f"{name} cannot run in mode {mode}: {lines[0]}") from error

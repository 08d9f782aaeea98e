"""How a module of a patched model finds its patch: a `Mark`, the only attribute that patching adds to modules."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from tokenreduce.forward.reduction import Reduction
from tokenreduce.forward.slicing import Slicing

ATTRIBUTE = "_tokenreduce"


class Mark(NamedTuple):
    """The patch that a module belongs to and, where it is a layer, the layer's number."""

    reduction: Any  # a `Reduction`, or a `Slicing` while the limit is measured
    layer: int = -1


def mark(module: nn.Module, reduction: Reduction | Slicing, layer: int = -1) -> None:
    """Say that `module` belongs to this patch."""
    module._tokenreduce = Mark(reduction, layer)  # type: ignore[assignment]


def unmark(module: nn.Module) -> None:
    """Take the mark off again, if there is one."""
    vars(module).pop(ATTRIBUTE, None)


def patch_of(module: nn.Module) -> Reduction | None:
    """The patch that `module` belongs to, or None."""
    found: Mark | None = vars(module).get(ATTRIBUTE)
    return None if found is None else found.reduction

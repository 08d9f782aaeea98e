"""How a module of a patched model finds its patch: a `Mark`, the only attribute that patching adds to modules."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from tokenreduce.forward.reduction import Reduction
from tokenreduce.forward.slicing import Slicing

ATTRIBUTE = "_tokenreduce"


Path = tuple[str, ...]  # the names on the way from a module to one inside it


class Mark(NamedTuple):
    """The patch that a module belongs to and, where it is a layer, the layer's number and the paths to the modules
    inside it that the patch relies on, which are marked too."""

    reduction: Any  # a `Reduction`, or a `Slicing` while the limit is measured
    layer: int = -1
    parts: tuple[Path, ...] = ()


def mark(module: nn.Module, reduction: Reduction | Slicing, layer: int = -1, parts: tuple[Path, ...] = ()) -> None:
    """Say that `module` belongs to this patch."""
    module._tokenreduce = Mark(reduction, layer, parts)  # type: ignore[assignment]


def unmark(module: nn.Module) -> None:
    """Take the mark off again, if there is one."""
    vars(module).pop(ATTRIBUTE, None)


def patch_of(module: nn.Module) -> Reduction | None:
    """The patch that `module` belongs to, or None."""
    found: Mark | None = vars(module).get(ATTRIBUTE)
    return None if found is None else found.reduction


def marked_inside(module: nn.Module, reduction: Reduction) -> tuple[Path, ...]:
    """The paths to the modules inside `module` that belong to this patch."""
    named = ((name, inner) for name, inner in module.named_modules() if name and patch_of(inner) is reduction)
    return tuple(tuple(name.split(".")) for name, _ in named)


def parts_stand(module: nn.Module) -> bool:
    """Whether all modules that the mark of `module` names are still those that were marked."""
    reduction, _, parts = vars(module)[ATTRIBUTE]
    for path in parts:
        inner: Any = module
        for name in path:
            inner = inner._modules.get(name)
            if inner is None:
                return False
        if ATTRIBUTE not in inner.__dict__ or inner.__dict__[ATTRIBUTE].reduction is not reduction:
            return False
    return True

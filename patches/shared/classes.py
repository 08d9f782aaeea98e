"""Swapping classes of modules, for classes at module level: what has been swapped can be copied and pickled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MethodType
from typing import Any

from torch import nn

Classes = Mapping[type[nn.Module], type[nn.Module]]  # what stands for each class while a model is reduced


def become(module: nn.Module, kind: type[nn.Module]) -> None:
    """Make `module` one of class `kind`, also in the bound forwards of its own that other tools keep on it."""
    kept = [name for name, value in vars(module).items() if is_own_forward(value, module)]
    module.__class__ = kind
    for name in kept:
        vars(module)[name] = MethodType(kind.forward, module)


def is_own_forward(value: Any, module: nn.Module) -> bool:
    """Whether `value` is the forward of the module's class, bound to it."""
    return isinstance(value, MethodType) and value.__self__ is module and value.__func__ is type(module).forward


def swap(modules: Iterable[nn.Module], classes: Classes) -> None:
    """Give each module the class that stands for its own, unless it has it."""
    for module in modules:
        if type(module) not in classes.values():
            become(module, classes[type(module)])


def swap_back(modules: Iterable[nn.Module], classes: Classes) -> None:
    """Undo `swap`, on what has been swapped."""
    originals = {reduced: original for original, reduced in classes.items()}
    for module in modules:
        if type(module) not in classes:
            become(module, originals[type(module)])


def refuse_classes(what: str, modules: Iterable[nn.Module], classes: Classes) -> list[str]:
    """Why the modules cannot be swapped, if a class is neither one of `classes` nor stands for one."""
    known = {*classes, *classes.values()}
    odd = sorted({type(module).__name__ for module in modules if type(module) not in known})
    if not odd:
        return []
    names = ", ".join(original.__name__ for original in classes)
    return [f"its {what} {', '.join(odd)} (known: {names}), or another tool has changed it: apply tokenreduce first"]

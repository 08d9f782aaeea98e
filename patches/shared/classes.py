"""Swapping classes of modules, for classes at module level: what has been swapped can be copied and pickled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

Classes = Mapping[type[nn.Module], type[nn.Module]]  # what stands for each class while a model is reduced


def swap(modules: Iterable[nn.Module], classes: Classes) -> None:
    """Give each module the class that stands for its own, unless it has it."""
    for module in modules:
        if type(module) not in classes.values():
            module.__class__ = classes[type(module)]


def swap_back(modules: Iterable[nn.Module], classes: Classes) -> None:
    """Undo `swap`, on what has been swapped."""
    originals = {reduced: original for original, reduced in classes.items()}
    for module in modules:
        if type(module) not in classes:
            module.__class__ = originals[type(module)]


def refuse_classes(what: str, modules: Iterable[nn.Module], classes: Classes) -> list[str]:
    """Why the modules cannot be swapped, if a class is neither one of `classes` nor stands for one."""
    known = {*classes, *classes.values()}
    odd = sorted({type(module).__name__ for module in modules if type(module) not in known})
    if not odd:
        return []
    names = ", ".join(original.__name__ for original in classes)
    return [f"its {what} {', '.join(odd)} (known: {names}), or another tool has changed it: apply tokenreduce first"]

"""Families whose `forward_intermediates` calls the layers one by one: the layers cannot see which of their outputs it
returns as maps, nor whether `forward_features` calls them. So they have to be told."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

from tokenreduce.forward.noted import collect_layers
from tokenreduce.forward.stack import forget

METHOD = "forward_intermediates"


def tell_layers(model: Any, layers: str = "blocks") -> None:
    """Let `model.forward_intermediates` tell the layers whose outputs it collects; `layers` names their list.

    This is the one attribute besides `Mark` that a patch adds, and the only one on a model. Only the method itself
    knows its arguments, no hook sees the call, and the class must not be swapped (see `Adapter`) nor changed (it is the
    user's or the library's). The attribute holds the model, as a bound method does, and for the same reason: who keeps
    the method alone keeps the model. So the model refers to itself, and until it is unpatched only the garbage
    collector frees it. A `partial` of a function at module level survives copies and pickles, and the compiler traces
    it; a bound method would be pickled by its name and come back as the library's own.
    """
    names = tuple(inspect.signature(type(model).forward_intermediates).parameters)[1:]
    vars(model)[METHOD] = partial(forward_intermediates, model, names, layers)


def stop_telling(model: Any) -> None:
    """Undo `tell_layers`."""
    vars(model).pop(METHOD, None)


def told_by_others(model: Any) -> list[str]:
    """Why the method cannot be wrapped; empty if it can."""
    own = vars(model).get(METHOD)
    if own is None or getattr(own, "func", None) is forward_intermediates:
        return []
    return [f"its method {METHOD} was replaced by another tool; undo that first"]


def forward_intermediates(model: Any, names: tuple[str, ...], layers_at: str, *args: Any, **kwargs: Any) -> Any:
    """The model's own method; `names` are those of its arguments."""
    given = dict(zip(names, args, strict=False)) | kwargs
    reduction = model._tokenreduce.reduction
    depth = len(getattr(model, layers_at))  # as the library counts: layers may have been cut since
    layers = taken(depth, given.get("indices"))
    if not given.get("intermediates_only"):  # what the last block leaves is returned as well
        layers |= {max(layers, default=0) if given.get("stop_early") else depth - 1}
    before = collect_layers(reduction, layers)
    try:
        return type(model).forward_intermediates(model, *args, **kwargs)
    finally:
        collect_layers(*before)
        forget(reduction)  # a forward that stopped early ran no last layer to end its run


def taken(depth: int, indices: int | Sequence[int] | None) -> frozenset[int]:
    """The layers that `indices` mean: all, the last so many, or those (negative: from the end)."""
    if indices is None:
        return frozenset(range(depth))
    if isinstance(indices, int):
        return frozenset(range(depth)[-indices:])
    return frozenset(index + depth if index < 0 else index for index in indices)

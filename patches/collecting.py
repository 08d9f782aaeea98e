"""Families whose `forward_features` and `forward_intermediates` both call the layers one by one: only the latter hands
their outputs on as maps, so that the layers have to be told which of the two calls them."""

from __future__ import annotations

from functools import partial
from typing import Any

from tokenreduce.stack import collect_layers

METHOD = "forward_intermediates"


def tell_layers(model: Any) -> None:
    """Let `model.forward_intermediates` say to the layers that their outputs are collected."""
    vars(model)[METHOD] = partial(forward_intermediates, model)


def stop_telling(model: Any) -> None:
    vars(model).pop(METHOD, None)


def told_by_others(model: Any) -> list[str]:
    """Why the method cannot be wrapped; empty if it can."""
    own = vars(model).get(METHOD)
    if own is None or getattr(own, "func", None) is forward_intermediates:
        return []
    return [f"its method {METHOD} was replaced by another tool; undo that first"]


def forward_intermediates(model: Any, *args: Any, **kwargs: Any) -> Any:
    before = collect_layers(model._tokenreduce)
    try:
        return type(model).forward_intermediates(model, *args, **kwargs)
    finally:
        collect_layers(before)

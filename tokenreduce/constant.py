"""Functions of plain integers that the compiler takes the result of, instead of tracing them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def constant_result(function: Function) -> Function:
    """Decorator: to `torch.compile` the result is a constant of the arguments."""
    # What torch.compiler.assume_constant_result does, which imports all of Dynamo: more than a second.
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function

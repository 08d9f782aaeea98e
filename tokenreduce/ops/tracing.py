"""What code must know of being traced: by `torch.compile`, or by an export to ONNX, which lacks some operators and
would unroll long loops."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])


def to_onnx() -> bool:
    """Whether `torch.onnx.export` is tracing."""
    return exporting() and torch.onnx.is_in_onnx_export()


def to_old_onnx() -> bool:
    """Whether the old exporter to ONNX is at work, `torch.onnx.export(dynamo=False)`, which knows too few operators."""
    return torch.jit.is_tracing() and torch.onnx.is_in_onnx_export()


def is_left_free(size: int) -> bool:
    """Whether `torch.export` leaves a length of the input free; `torch.compile` makes one graph for each instead."""
    return isinstance(size, torch.SymInt) and exporting() and size.node.maybe_as_int() is None


def repeat(step: Callable[..., tuple[Tensor, ...]], times: int, *state: Tensor) -> tuple[Tensor, ...]:
    """The state after `state = step(round, *state)` for the rounds 0 ... times - 1, as one loop of the graph.

    A step changes neither shapes nor types, nor its arguments in place.
    """

    def goes_on(done: Tensor, *state: Tensor) -> Tensor:
        return done < times

    def one_round(done: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        return done + 1, *step(done, *state)

    start = torch.zeros((), dtype=torch.long, device=state[0].device)
    return torch.while_loop(goes_on, one_round, (start, *state))[1:]


def constant_result(function: Function) -> Function:
    """Decorator for functions of plain integers, whose result `torch.compile` takes as a constant instead of tracing
    them."""
    # What torch.compiler.assume_constant_result does, which imports all of Dynamo: more than a second.
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def computed_once(function: Function) -> Function:
    """The same decorator for those that compute for long: what they gave for the same numbers is remembered."""
    remembered = lru_cache(maxsize=1024)(function)

    # Outside of the cache, which the compiler would look behind.
    @constant_result
    @wraps(function)
    def result(*numbers: Any) -> Any:
        plain = not any(isinstance(x, (Tensor, torch.SymInt)) for x in numbers)  # as lengths in a trace are
        return remembered(*numbers) if plain else function(*numbers)

    return result  # type: ignore[return-value]


@constant_result
def exporting() -> bool:
    """Whether `torch.export` is at work; the compiler of PyTorch 2.11 takes `torch.compiler.is_exporting` for true in
    all it compiles, and asks this instead of tracing it."""
    return torch.compiler.is_exporting()

"""CUDA graphs: a forward that is recorded once and started again in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenreduce.errors import InvalidTypeError, InvalidValueError

WARM_UP = 3  # forwards: libraries choose algorithms and kernels compile, which a capture must not contain


class Recorded:
    """`call(*args, **kwargs)` as a CUDA graph, without gradients.

    The graph reads and writes memory of its own. Calling it copies tensors in, replays it and copies the outputs out;
    `replay` does only the middle. What is no tensor was recorded with the graph.
    """

    def __init__(self, call: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.args, self.kwargs = [own(value) for value in args], {name: own(value) for name, value in kwargs.items()}
        self.graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), autocast_without_cache():
            on_side_stream(lambda: call(*self.args, **self.kwargs))
            # Allocations of other threads, such as a data loader's, may go on.
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.outputs = call(*self.args, **self.kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the recorded call gives for inputs like those it was recorded with.

        Raises: ValueError for inputs of another shape, dtype or device, or other values that are no tensors; TypeError
        for other arguments.
        """
        if len(args) != len(self.args) or kwargs.keys() != self.kwargs.keys():
            raise InvalidTypeError(
                f"got {described(args, kwargs)}; the graph was recorded with {described(self.args, self.kwargs)}"
            )
        given = [*zip(range(len(args)), args, self.args, strict=True)]
        given += [(name, value, self.kwargs[name]) for name, value in kwargs.items()]  # type: ignore[misc]
        for name, value, recorded in given:
            check_same(name, value, recorded)
        with torch.no_grad():
            for _, value, recorded in given:
                if isinstance(recorded, Tensor):
                    recorded.copy_(value)
            self.replay()
            return own(self.outputs)

    def replay(self) -> None:
        """Run the graph again on the inputs that were copied in last."""
        self.graph.replay()


def on_side_stream(call: Callable[[], object]) -> None:
    """Warm `call` up where a capture will run it: beside the default stream."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(side)


def autocast_without_cache() -> torch.autocast:
    """Autocast as it is now, without its cache of cast weights, which ends before the graph does."""
    enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    return torch.autocast("cuda", dtype, enabled, cache_enabled=False)


def own(value: Any) -> Any:
    """A copy of all tensors in `value`: a tensor, or tuples, lists and dicts of them, named ones too."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return type(value)(**{name: own(item) for name, item in value.items()})
    if isinstance(value, tuple | list):
        items = [own(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def check_same(name: int | str, value: Any, recorded: Any) -> None:
    """Refuse what the graph cannot take in the place of what was recorded."""
    if isinstance(recorded, Tensor) and isinstance(value, Tensor):
        same = (value.shape, value.dtype, value.device) == (recorded.shape, recorded.dtype, recorded.device)
    else:
        same = type(value) is type(recorded) and value == recorded
    if not same:
        raise InvalidValueError(
            f"argument {name} is {words(value)}; the graph was recorded with {words(recorded)} and takes nothing else: "
            "record one graph for each, or call the model itself"
        )


def words(value: Any) -> str:
    """A value in an error."""
    if not isinstance(value, Tensor):
        return repr(value)
    return f"a {str(value.dtype).removeprefix('torch.')} tensor {tuple(value.shape)} on {value.device}"


def described(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """How many arguments, and the names of those with one."""
    named = f" and {', '.join(kwargs)}" if kwargs else ""
    return f"{len(args)} positional argument{'s' * (len(args) != 1)}{named}"

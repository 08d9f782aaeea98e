"""`graph`: a patched model as a CUDA graph."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.forward.marks import patch_of
from tokenreduce.forward.reduction import Reduction
from tokenreduce.ops.graphs import Recorded
from tokenreduce.patching.finding import find_backbone, reduction_of

Example = Tensor | tuple[Any, ...] | Mapping[str, Any]


class GraphedModel:
    """What `graph` returns: called like the model, with inputs like the example, it gives the model's outputs."""

    def __init__(self, model: nn.Module, reduction: Reduction, recorded: Recorded) -> None:
        self.model = model
        self._backbone, self._reduction, self._recorded = find_backbone(model)[1], reduction, recorded

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's outputs as new tensors, without gradients.

        Raises: ValueError, TypeError for inputs unlike the example, or if the patch has changed since.
        """
        if patch_of(self._backbone) is not self._reduction:
            raise InvalidValueError("the model was patched again or unpatched since; call tokenreduce.graph again")
        return self._recorded(*args, **kwargs)


def graph(model: nn.Module, example: Example) -> GraphedModel:
    """Record one forward of a patched model on a GPU as a CUDA graph, which runs without Python and without launches
    one by one.

    The graph is for inputs of one shape. Weights may change in place but not move. `report(model)` then shows tensors
    of the last replay, which live in the graph's memory. Calls from several threads must take turns.

    Args:
        model: patched, in eval mode, on a GPU. Autocast is recorded as it is now.
        example: an input of the shape, dtype and device of those to come: a tensor, a tuple of arguments or a dict of
            them. What is no tensor is recorded too.

    Raises:
        ValueError: a model that is not patched, is in training mode or is not on a GPU; a method that asks the data how
            many tokens to keep; a forward that waits for the GPU, or does something else that no graph can hold.
        TypeError: an example that is none of these.
    """
    reduction = reduction_of(model)
    if not isinstance(example, Tensor | tuple | Mapping):
        raise InvalidTypeError(
            f"example is a {type(example).__name__}; give a tensor, a tuple of positional arguments or a dict of "
            "keyword arguments of the model's forward"
        )
    kwargs = example if isinstance(example, Mapping) else {}
    args = example if isinstance(example, tuple) else () if isinstance(example, Mapping) else (example,)
    reason = why_not(model, reduction, [*args, *kwargs.values()])
    if reason:
        raise InvalidValueError(reason)
    try:
        recorded = Recorded(model, args, kwargs)
    except RuntimeError as error:
        raise InvalidValueError(
            f"this {type(model).__name__} with {reduction.reducer.name} cannot be recorded as a CUDA graph: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return GraphedModel(model, reduction, recorded)


def why_not(model: nn.Module, reduction: Reduction, inputs: list[Any]) -> str:
    """Why a model can have no graph, as far as it can be told without running it; empty if it may have one."""
    if reduction.adaptive:
        return (
            f"{reduction.reducer.name} without a budget asks the data how many tokens to keep, and a CUDA graph has "
            "fixed shapes; patch with a budget, for example flops=0.6"
        )
    if model.training:
        return "the model is in training mode, which a graph of one forward cannot serve; call model.eval() first"
    tensors = chain(model.parameters(), model.buffers(), (value for value in inputs if isinstance(value, Tensor)))
    places = {tensor.device for tensor in tensors}
    if len(places) > 1:
        return f"model and example are on {', '.join(sorted(map(str, places)))}; move all of them to one GPU"
    if not all(map(is_gpu, places)):
        return f"CUDA graphs are for GPUs, and this model is on {places.pop()}; call the model itself there"
    return ""


def is_gpu(device: torch.device) -> bool:
    """Whether work on this device can be recorded."""
    return device.type == "cuda"

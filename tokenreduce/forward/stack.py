"""The runs of a thread: a thread-local stack, the one side channel that `torch.compile(fullgraph=True)`,
`torch.export`, deepcopy, pickle and threads all survive."""

from __future__ import annotations

import threading
from collections.abc import Callable
from math import prod
from typing import Any

from torch import Tensor

from tokenreduce.errors import InvalidValueError
from tokenreduce.forward.noted import noted_grid, taken_video
from tokenreduce.forward.records import keep_record
from tokenreduce.forward.reduction import Reduction
from tokenreduce.forward.run import Run
from tokenreduce.forward.slicing import Slicing


class _Thread(threading.local):
    def __init__(self) -> None:
        self.runs: list[Run] = []


_thread = _Thread()


def open_run(
    reduction: Reduction,
    x: Tensor,
    taps: Callable[[Reduction], frozenset[int]] | None = None,
    valid: Callable[[], Tensor | None] | None = None,
    surrounded: bool = False,
) -> Run | None:
    """A new run on top of the stack, or None if the schedule removes nothing from so many tokens.

    `taps`, `valid` and `surrounded` as in `Run`; the first two are asked only if there is one.
    """
    forget(reduction)  # what an exception or a forward that stopped early left behind
    shape, video = reduction.geometry, taken_video(reduction)
    entered = x.shape[1] - shape.protected
    if reduction.is_identity(entered):
        return None
    tapped = frozenset() if taps is None else taps(reduction)
    if tapped and not reduction.restoring.taps:
        raise InvalidValueError(
            "this call returns feature maps (forward_intermediates), which need all tokens, but the model was patched "
            'with restore=False; patch with restore="auto" or True, or use forward_features'
        )
    grid = noted_grid(reduction)
    known_grid = grid if prod(grid) == entered else None
    run = Run(reduction, entered, known_grid, tapped, None if valid is None else valid(), surrounded, video)
    _thread.runs.append(run)
    try:
        run.begin(run.blank(x))
    except BaseException:
        close(run)
        raise
    return run


def forget(reduction: Reduction) -> None:
    """Take what runs there are of a patched model off the stack."""
    _thread.runs[:] = [run for run in _thread.runs if run.reduction is not reduction]


def close(run: Run) -> None:
    """Take `run` off the stack; runs of other models may lie above it."""
    _thread.runs[:] = [other for other in _thread.runs if other is not run]


def join(
    reduction: Reduction | Slicing,
    layer: int,
    x: Tensor,
    taps: Callable[[Reduction], frozenset[int]] | None = None,
    valid: Callable[[], Tensor | None] | None = None,
) -> Any:
    """The run that layer `layer` takes part in, opened by layer 0 where nothing around the layers did; None: nothing
    is ever removed. A `Slicing` stands for itself. `taps` and `valid` are asked when a run opens.

    Raises: ValueError if there is none although tokens are to be removed.
    """
    if isinstance(reduction, Slicing):
        return reduction
    for run in reversed(_thread.runs):
        if run.reduction is reduction and run.next_layer == layer and (layer or run.surrounded):
            return run
    if layer == 0:
        return open_run(reduction, x, taps, valid)
    if reduction.is_identity(x.shape[1] - reduction.geometry.protected):
        return None
    raise InvalidValueError(
        f"block {layer} of a reduced model was called outside a forward pass, or in another thread than "
        f"block {layer - 1}; "
        "gradient checkpointing does that: switch it off (set_grad_checkpointing(False)) or call "
        "tokenreduce.unpatch(model)"
    )


def leave(run: Run | Slicing, layer: int, x: Tensor) -> Tensor:
    """What a layer returns; where nothing surrounds the layers, the last one restores and closes the run."""
    if isinstance(run, Slicing):
        return x
    if run.surrounded:
        return run.leave(layer, x)
    last = layer == run.reduction.geometry.depth - 1
    x = run.leave(layer, x, everything=last and run.reduction.restoring.ends)
    keep_record(run.reduction, run.record())
    if last:
        close(run)
    return x


def finish(run: Run, x: Tensor, restore: bool) -> Tensor:
    """What code that surrounds the layers goes on with after the last one: all tokens if `restore`."""
    keep_record(run.reduction, run.record())
    return run.restore(x, at_end=True) if restore else x


def capturing(reduction: Reduction) -> Run | None:
    """The run of this model if its current layer reduces, so that hooks keep nothing that no reducer will see."""
    for run in reversed(_thread.runs):
        if run.reduction is reduction:
            return run if run.may_reduce(run.next_layer) else None
    return None

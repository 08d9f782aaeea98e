"""The runs of a thread: a thread-local stack, the one side channel that `torch.compile(fullgraph=True)`,
`torch.export`, deepcopy, pickle and threads all survive."""

from __future__ import annotations

import threading
from collections.abc import Callable
from math import prod
from typing import Any

from torch import Tensor

from tokenreduce.errors import InvalidValueError
from tokenreduce.recording import record
from tokenreduce.reduction import Reduction
from tokenreduce.run import Run, Video
from tokenreduce.slicing import Slicing


class _ThreadState(threading.local):
    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.grid: tuple[Reduction, tuple[int, ...]] | None = None
        self.videos: list[tuple[Reduction, Video]] = []
        self.collecting: tuple[Reduction | None, frozenset[int]] = (None, frozenset())


_state = _ThreadState()


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
    if tapped and not reduction.restore_taps:
        raise InvalidValueError(
            "restore=False leaves no map to return, but the outputs of single layers are collected, as "
            'forward_intermediates does; patch with restore="auto" or True, or use forward_features'
        )
    grid = noted_grid(reduction)
    known_grid = grid if prod(grid) == entered else None
    run = Run(reduction, entered, known_grid, tapped, None if valid is None else valid(), surrounded, video)
    _state.runs.append(run)
    try:
        run.begin(run.blank(x))
    except BaseException:
        close(run)
        raise
    return run


def forget(reduction: Reduction) -> None:
    """Take what runs there are of a patched model off the stack."""
    _state.runs[:] = [run for run in _state.runs if run.reduction is not reduction]


def close(run: Run) -> None:
    """Take `run` off the stack; runs of other models may lie above it."""
    _state.runs[:] = [other for other in _state.runs if other is not run]


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
    for run in reversed(_state.runs):
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
    x = run.leave(layer, x, whole=last and run.reduction.restore)
    record(run)
    if last:
        close(run)
    return x


def capturing(reduction: Reduction) -> Run | None:
    """The run of this model if its current layer reduces, so that hooks keep nothing that no reducer will see."""
    for run in reversed(_state.runs):
        if run.reduction is reduction:
            return run if run.may_reduce(run.next_layer) else None
    return None


def note_grid(reduction: Reduction, grid: tuple[int, ...]) -> None:
    """Remember the grid that the patch embedding just made, for the run that follows in this thread."""
    _state.grid = (reduction, grid)


def noted_grid(reduction: Reduction) -> tuple[int, ...]:
    """The grid that was noted last; the default one where nothing was."""
    noted = _state.grid
    return noted[1] if noted is not None and noted[0] is reduction else reduction.geometry.grid


def note_video(reduction: Reduction, video: Tensor, tubelet: tuple[int, ...]) -> None:
    """Remember what the patch embedding just made tokens of, for the run that follows in this thread."""
    taken_video(reduction)
    _state.videos.append((reduction, (video, tubelet)))


def taken_video(reduction: Reduction) -> Video | None:
    """The video that was noted last, which is forgotten: nothing here may keep it alive."""
    found = [video for noted, video in _state.videos if noted is reduction]
    if not found:
        return None
    _state.videos[:] = [entry for entry in _state.videos if entry[0] is not reduction]
    return found[0]


def collect_layers(
    reduction: Reduction | None, layers: frozenset[int] | None = None
) -> tuple[Reduction | None, frozenset[int]]:
    """Say that the layers of this model are now called by code that collects the outputs of `layers`, or of all, as
    maps; the value is what was said before, to be said again afterwards."""
    before = _state.collecting
    every = frozenset(range(reduction.geometry.depth)) if reduction is not None else frozenset()
    _state.collecting = (reduction, every if layers is None else layers)
    return before


def collected(reduction: Reduction, otherwise: frozenset[int] = frozenset()) -> frozenset[int]:
    """The layers whose outputs are now collected, or `otherwise` where nobody has said."""
    told, layers = _state.collecting
    return layers if told is reduction else otherwise


def current_phase() -> str:
    """What the current run is doing: "model", "reducer" or "restore"."""
    for run in _state.runs:
        if run.phase != "model":
            return run.phase
    return "model"

"""The runs of a thread: a thread-local stack, the one side channel that `torch.compile(fullgraph=True)`,
`torch.export`, deepcopy, pickle and threads all survive."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokenreduce.errors import InvalidValueError
from tokenreduce.forward.noted import drop_notes, taken_grid, taken_video
from tokenreduce.forward.records import Record, keep_record
from tokenreduce.forward.reduction import Reduction
from tokenreduce.forward.run import Run
from tokenreduce.forward.slicing import Slicing
from tokenreduce.forward.strays import is_same, refuse_free, refuse_old_exporter, refuse_proxy, two_at_once, why_no_run


class _Key:
    """Stands for a thread, and is gone when the thread is."""


class _Thread(threading.local):
    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.left: Any = None  # a weak reference to what a forward that was left unfinished had returned
        self.key = _Key()
        _stacks[self.key] = self.runs


_stacks: weakref.WeakKeyDictionary[_Key, list[Run]] = weakref.WeakKeyDictionary()  # of all threads
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

    Raises: ValueError if the model is no longer what was patched.
    """
    refuse_proxy(x)
    refuse_free(x.shape[1])
    forget(reduction)  # what an exception or a forward that stopped early left behind
    shape, entered = reduction.geometry, reduction.image_tokens(x)
    video = taken_video(reduction, x.shape[0], entered)
    depth = reduction.depth_now()
    if depth < shape.depth:
        check_cut(reduction, depth, entered)
    if reduction.is_identity(entered):
        taken_grid(reduction, entered)
        if reduction.passes(entered):
            keep_record(reduction, Record(entered, (entered,) * depth, ()))
        return None
    refuse_old_exporter()
    tapped = frozenset() if taps is None else taps(reduction)
    if tapped and not reduction.restoring.taps:
        raise InvalidValueError(
            "this call returns feature maps (forward_intermediates), which need all tokens, but the model was patched "
            'with restore=False; patch with restore="auto" or True, or use forward_features'
        )
    grid = taken_grid(reduction, entered)
    run = Run(reduction, entered, grid, tapped, None if valid is None else valid(), surrounded, video, depth)
    _thread.runs.append(run)
    _drop_with_model(run)
    try:
        run.begin(run.blank(x))
    except BaseException:
        close(run)
        raise
    return run


def check_cut(reduction: Reduction, depth: int, entered: int) -> None:
    """Raise unless the first `depth` layers do what they would do if they had been all when the model was patched."""
    cut = reduction.cut(depth)
    try:
        if reduction.adaptive:
            alike = cut.deciding_layers == tuple(layer for layer in reduction.deciding_layers if layer < depth)
        else:
            cut.schedule.check_layers(depth, cut.geometry.needs_all)
            alike = cut.counts(entered) == reduction.counts(entered)[:depth]
    except InvalidValueError:
        alike = False
    if not alike:
        raise InvalidValueError(
            f"this model had {reduction.geometry.depth} blocks when it was patched and has {depth} now, to which its "
            "budget is spread otherwise; patch it again"
        )


def _drop_with_model(run: Run) -> None:
    """Drop the run once its model is gone, which a forward that stops early would otherwise keep in memory."""
    backbone = None if run.reduction.owner is None or torch.compiler.is_compiling() else run.reduction.owner.backbone
    if backbone is not None:
        runs, me = _thread.runs, weakref.ref(run)

        def drop(_: object) -> None:
            _take_off(runs, [other for other in runs if other is me()])

        run.watch = weakref.ref(backbone, drop)


def forget(reduction: Reduction) -> None:
    """Take what runs there are of a patched model off the stack."""
    if _thread.runs:
        unfinished = [run.given for run in _thread.runs if run.reduction is reduction and run.given is not None]
        if unfinished and not torch.compiler.is_compiling():
            _thread.left = weakref.ref(unfinished[-1])
        _take_off(_thread.runs, [run for run in _thread.runs if run.reduction is reduction])


def _take_off(runs: list[Run], gone: list[Run]) -> None:
    """Take runs off a stack, so that they are freed at once: what a layer shows may refer to the run again."""
    for run in gone:
        run.shown.clear()
    runs[:] = [run for run in runs if not any(run is other for other in gone)]


def forget_everywhere(reduction: Reduction) -> None:
    """Take what runs there are of a patch that is gone off the stacks of all threads, and its notes."""
    for runs in list(_stacks.values()):
        _take_off(runs, [run for run in runs if run.reduction is reduction])
    drop_notes(reduction)


def close(run: Run) -> None:
    """Take `run` off the stack; runs of other models may lie above it."""
    _take_off(_thread.runs, [run])


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
            if x is not run.given and _was_left(x):
                raise InvalidValueError(two_at_once(layer))
            return run
    if layer == 0:
        return open_run(reduction, x, taps, valid)
    if reduction.is_identity(reduction.image_tokens(x)):
        return None
    if reduction.owner is not None:
        reduction.depth_now()  # it says so if the model was changed
    elsewhere = [run for runs in list(_stacks.values()) for run in runs if runs is not _thread.runs]
    raise InvalidValueError(why_no_run(reduction, layer, _thread.runs, elsewhere))


def _was_left(x: Tensor) -> bool:
    """Whether `x` is what a forward has returned that another one has replaced since."""
    return not torch.compiler.is_compiling() and _thread.left is not None and is_same(_thread.left(), x)


def leave(run: Run | Slicing, layer: int, x: Tensor) -> Tensor:
    """What a layer returns; where nothing surrounds the layers, the last one restores and closes the run."""
    if isinstance(run, Slicing):
        return x
    if run.surrounded:
        return run.leave(layer, x)
    last = layer == run.depth - 1
    x = run.leave(layer, x, everything=last and run.reduction.restoring.ends)
    if layer == 0 or last:  # of a forward that stops in between, too
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

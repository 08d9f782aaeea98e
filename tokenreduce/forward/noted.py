"""Notes to the run that comes next in this thread: what only the code before the first layer knows.

They are thread-local, like the runs, and a note for one model is never read by another. Nor is one image's read for
another: where two were embedded before either ran, the notes are told apart by their number of tokens, or refused.
"""

from __future__ import annotations

import threading
from math import prod

import torch
from torch import Tensor

from tokenreduce.errors import InvalidValueError
from tokenreduce.forward.reduction import Reduction
from tokenreduce.forward.shown import Video
from tokenreduce.forward.strays import refuse_free

Grid = tuple[int, ...]
MOST = 32  # notes that nobody reads are dropped, the oldest first


class _Notes(threading.local):
    def __init__(self) -> None:
        self.grids: list[tuple[Reduction, Grid]] = []  # of what was embedded since the last run
        self.used: list[tuple[Reduction, Grid]] = []  # of the last run of each model
        self.videos: list[tuple[Reduction, Video]] = []
        self.collecting: tuple[Reduction | None, frozenset[int]] = (None, frozenset())


_notes = _Notes()


def note_grid(reduction: Reduction, grid: Grid, only: bool = False) -> None:
    """Remember the grid that the patch embedding just made, for the run that follows in this thread. `only`: it is
    certainly that of the run that follows."""
    refuse_free(*grid)
    grid = tuple(int(side) for side in grid)  # plain numbers also where a trace is made
    if _is_traced():  # the run follows in the same graph, and reading what stood here would guard it
        _notes.grids = [(reduction, grid)]
        return
    notes = [note for note in _notes.grids if note[0] is not reduction or not (only or note[1] == grid)]
    _notes.grids = [*notes[1 - MOST :], (reduction, grid)]


def noted_grid(reduction: Reduction, count: int) -> Grid | None:
    """The grid of the `count` tokens that enter: the noted one, else the last run's or, where nothing was noted, the
    default one; None where it is not known.

    Raises: ValueError where images of several grids with so many tokens were embedded, and none ran since.
    """
    fitting = _fitting(reduction, count)
    if len(fitting) > 1:
        _drop_grids(reduction)  # so that the next image is not refused, too
        shapes = " and ".join("x".join(str(side) for side in grid) for grid in fitting)
        raise InvalidValueError(
            f"images whose {count} tokens are grids of {shapes} were embedded before any of them ran through the "
            "blocks, so that it is not known which grid these tokens have; embed and run one after the other"
        )
    return fitting[0] if fitting else _earlier_grid(reduction, count)


def taken_grid(reduction: Reduction, count: int) -> Grid | None:
    """`noted_grid` for the run that opens now. Where several fit, it is refused only to methods that read grids."""
    reads = reduction.reducer.required() | reduction.reducer.uses
    fitting = _fitting(reduction, count)
    grid = None if len(fitting) > 1 and not reads & {"grid", "positions"} else noted_grid(reduction, count)
    if fitting and not _is_traced():
        _notes.grids = [note for note in _notes.grids if note[0] is not reduction or prod(note[1]) != count]
        if grid is not None:
            _notes.used = [*[note for note in _notes.used if note[0] is not reduction][1 - MOST :], (reduction, grid)]
    elif not _is_traced():
        _drop_grids(reduction)
    return grid


def _fitting(reduction: Reduction, count: int) -> list[Grid]:
    return [grid for noted, grid in _notes.grids if noted is reduction and prod(grid) == count]


def _earlier_grid(reduction: Reduction, count: int) -> Grid | None:
    if any(noted is reduction for noted, _ in _notes.grids):
        return None
    default = reduction.geometry.grid
    grid = next((grid for used, grid in _notes.used if used is reduction), default)
    return grid if prod(grid) == count else None


def _drop_grids(reduction: Reduction) -> None:
    if _notes.grids:
        _notes.grids = [note for note in _notes.grids if note[0] is not reduction]


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def note_video(reduction: Reduction, video: Tensor, tubelet: tuple[int, ...]) -> None:
    """Remember what the patch embedding just made tokens of, for the run that follows in this thread."""
    taken_video(reduction)
    _notes.videos.append((reduction, (video, tubelet)))


def taken_video(reduction: Reduction) -> Video | None:
    """Return and drop the noted video, so that this module does not keep it in memory."""
    found = [video for noted, video in _notes.videos if noted is reduction]
    if not found:
        return None
    _notes.videos[:] = [entry for entry in _notes.videos if entry[0] is not reduction]
    return found[0]


def drop_notes(reduction: Reduction) -> None:
    """Forget what was noted in this thread for a patch that is gone."""
    _drop_grids(reduction)
    _notes.used = [note for note in _notes.used if note[0] is not reduction]
    taken_video(reduction)


def collect_layers(
    reduction: Reduction | None, layers: frozenset[int] | None = None
) -> tuple[Reduction | None, frozenset[int]]:
    """Say that the layers of this model are now called by code that collects the outputs of `layers`, or of all, as
    maps. Returns the previous setting; pass it back when done."""
    before = _notes.collecting
    every = frozenset(range(reduction.geometry.depth)) if reduction is not None else frozenset()
    _notes.collecting = (reduction, every if layers is None else layers)
    return before


def collected(reduction: Reduction, otherwise: frozenset[int] = frozenset()) -> frozenset[int]:
    """The layers whose outputs are now collected, or `otherwise` where nobody has said."""
    told, layers = _notes.collecting
    return layers if told is reduction else otherwise

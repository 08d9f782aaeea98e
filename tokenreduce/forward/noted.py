"""Notes to the run that comes next in this thread: what only the code before the first layer knows.

They are thread-local, like the runs, and a note for one model is never read by another. Nor is one image's read for
another: where two were embedded before either ran, the notes are told apart by their number of tokens, or refused.
The same holds for videos.
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
from tokenreduce.ops.constants import watched

Grid = tuple[int, ...]
Shape = tuple[int, int]  # videos, and tokens of each
MOST = 32  # notes that nobody reads are dropped, the oldest first
MOST_VIDEOS = 4  # which are large


class _Notes(threading.local):
    def __init__(self) -> None:
        self.grids: list[tuple[Reduction, Grid]] = []  # of what was embedded since the last run
        self.used: list[tuple[Reduction, Grid]] = []  # of the last run of each model
        self.videos: list[tuple[Reduction, Shape | None, Video | None]] = []  # None: several of this shape
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
    reads = reduction.reducer.read_between()
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
    note: Video | None = video, tubelet
    if _is_traced():
        _notes.videos = [(reduction, None, note)]
        return
    shape = video.shape[0], prod(side // step for side, step in zip(video.shape[2:], tubelet, strict=True))
    before = [entry for entry in _notes.videos if entry[0] is reduction and entry[1] == shape]
    if any(earlier is None or not (watched() or torch.equal(earlier[0], video)) for *_, earlier in before):
        note = None
    others = [entry for entry in _notes.videos if entry[0] is not reduction or entry[1] != shape]
    _notes.videos = [*others[1 - MOST_VIDEOS :], (reduction, shape, note)]


def taken_video(reduction: Reduction, videos: int, count: int) -> Video | None:
    """Return the note of these `videos` of `count` tokens each, and drop all, so that this module keeps none in memory.

    Raises: ValueError where several that it may be were embedded, and none ran since.
    """
    noted = [(shape, note) for one, shape, note in _notes.videos if one is reduction]
    if not noted:
        return None
    _drop_videos(reduction)
    # Some models leave tokens out before the first layer.
    fitting = [note for shape, note in noted if shape == (videos, count)] or [note for _, note in noted]
    if len(fitting) > 1 or fitting[0] is None:
        raise InvalidValueError(
            "several videos were embedded before any of them ran through the blocks, so that it is not known whose "
            f"{count} tokens these are, and {reduction.reducer.name} reads their pixels; embed and run one after the "
            "other"
        )
    return fitting[0]


def _drop_videos(reduction: Reduction) -> None:
    _notes.videos = [entry for entry in _notes.videos if entry[0] is not reduction]


def drop_notes(reduction: Reduction) -> None:
    """Forget what was noted in this thread for a patch that is gone."""
    _drop_grids(reduction)
    _notes.used = [note for note in _notes.used if note[0] is not reduction]
    _drop_videos(reduction)


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

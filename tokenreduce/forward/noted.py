"""Notes to the run that comes next in this thread: what only the code before the first layer knows.

They are thread-local, like the runs, and a note for one model is never read by another.
"""

from __future__ import annotations

import threading

from torch import Tensor

from tokenreduce.forward.reduction import Reduction
from tokenreduce.forward.shown import Video


class _Notes(threading.local):
    def __init__(self) -> None:
        self.grid: tuple[Reduction, tuple[int, ...]] | None = None
        self.videos: list[tuple[Reduction, Video]] = []
        self.collecting: tuple[Reduction | None, frozenset[int]] = (None, frozenset())


_notes = _Notes()


def note_grid(reduction: Reduction, grid: tuple[int, ...]) -> None:
    """Remember the grid that the patch embedding just made, for the run that follows in this thread."""
    _notes.grid = (reduction, grid)


def noted_grid(reduction: Reduction) -> tuple[int, ...]:
    """The grid that was noted last; the default one where nothing was."""
    noted = _notes.grid
    return noted[1] if noted is not None and noted[0] is reduction else reduction.geometry.grid


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

"""`LanguageRun`: one forward of a vision-language model, on the thread's stack from the model's door to the end of the
forward. What later forwards of the same prompts need is in their cache (`Kept`), nowhere else."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

from tokenreduce.forward.language.kept import Kept
from tokenreduce.forward.language.passage import Passage
from tokenreduce.forward.language.reduction import LanguageReduction
from tokenreduce.forward.language.stream import Later, Stream
from tokenreduce.forward.language.units import Unit


class Crossing(NamedTuple):
    """What the language model's call is in the middle of: its cache, and where rows have left, how, and after
    what."""

    cache: Any
    passage: Passage | None = None
    before: Kept | None = None
    stream: Stream | None = None  # where more rows leave within the model
    later: Later | None = None  # where rows have left there before


class LanguageRun:
    """The units that were found, and the call of the language model that is under way.

    Args:
        inside: the language model was called alone, and closes the run.
        mask: what the model was given as one, of which it may make others for the language model.
    """

    def __init__(
        self, reduction: LanguageReduction, units: Sequence[Unit], inside: bool = False, mask: Any = None
    ) -> None:
        self.reduction, self.units, self.inside, self.mask = reduction, units, inside, mask
        self.crossing: Crossing | None = None

    @property
    def pairs(self) -> bool:
        """Whether the language model gets masks of pairs."""
        return self.reduction.adapter.masks_outside and not self.inside


class _Thread(threading.local):
    def __init__(self) -> None:
        self.runs: list[LanguageRun] = []


_thread = _Thread()


def open_run(
    reduction: LanguageReduction, units: Sequence[Unit], inside: bool = False, mask: Any = None
) -> LanguageRun:
    """A new run on top of the stack."""
    run = LanguageRun(reduction, units, inside, mask)
    _thread.runs.append(run)
    return run


def current(reduction: LanguageReduction) -> LanguageRun | None:
    """The innermost run of this patch in this thread."""
    return next((run for run in reversed(_thread.runs) if run.reduction is reduction), None)


def forget(reduction: LanguageReduction) -> None:
    """Take all runs of this patch off this thread's stack, of forwards that were interrupted."""
    _thread.runs[:] = [run for run in _thread.runs if run.reduction is not reduction]


def close(reduction: LanguageReduction) -> None:
    """Take the innermost run of this patch off the stack, if there is one."""
    run = current(reduction)
    _thread.runs[:] = [other for other in _thread.runs if other is not run]

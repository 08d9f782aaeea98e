"""Whose work is running in this thread: the model's own, the reducer's, or restoring. `Run` says it, the counter of
multiply-adds asks."""

from __future__ import annotations

import threading


class _Thread(threading.local):
    def __init__(self) -> None:
        self.phase = "model"


_thread = _Thread()


class working:  # noqa: N801  reads as a statement; a class, because torch.compile traces it without a generator
    """`with working("reducer"):` makes what runs inside the reducer's work; of nested phases the outermost counts."""

    def __init__(self, phase: str) -> None:
        self.phase = phase

    def __enter__(self) -> None:
        self.before = _thread.phase
        if self.before == "model":
            _thread.phase = self.phase

    def __exit__(self, *exception: object) -> None:
        _thread.phase = self.before


def current_phase() -> str:
    """ "model", "reducer" or "restore"."""
    return _thread.phase

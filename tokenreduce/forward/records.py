"""`Record`: what the last forward of a patched model did, kept for `report`."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tokenreduce.maps.token_map import TokenMap


@dataclass(frozen=True)
class Record:
    """Image tokens that entered, tokens after each layer, the maps with their layers, and the sizes of the tokens that
    entered, 0 for padding (None: all 1). Of a forward that is under way the sequences still grow."""

    entered: int
    counts: Sequence[int]
    maps: Sequence[tuple[int, TokenMap]]
    sizes: Tensor | None = None


# By the identity of the patch; what has no patch any more has no record.
_records: weakref.WeakKeyDictionary[object, Any] = weakref.WeakKeyDictionary()


def keep_record(patch: object, record: Any) -> None:
    """Store what `report` shows, a `Record` or that of a language model.

    Skipped while compiling: it would make every map an output of the graph.
    """
    if not torch.compiler.is_compiling():
        _records[patch] = record


def last_record(patch: object) -> Any:
    """The record of the last forward in any thread, as it is now."""
    found = _records.get(patch)
    return replace(found, counts=tuple(found.counts), maps=tuple(found.maps)) if type(found) is Record else found

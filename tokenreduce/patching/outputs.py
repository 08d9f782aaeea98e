"""How the outputs of a patched model get all tokens back: one `Restoring`, decided here from what was asked for."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import nn

from tokenreduce.errors import InvalidValueError, NothingSavedWarning
from tokenreduce.maps.restoring import MODES, Restoring
from tokenreduce.patches.shared.adapter import Adapter
from tokenreduce.reducers.contract import Reducer


def check_restore(reducer: Reducer, asked: object) -> None:
    """Raise unless `restore=asked` means something to this method."""
    if not (isinstance(asked, bool) or asked == "auto" or asked in reducer.modes):
        names = ", ".join(f'"{mode}"' for mode in ("auto", *reducer.modes))
        reason = f" ({reducer.name} has no such way)" if isinstance(asked, str) and asked in MODES else ""
        raise InvalidValueError(f"restore is {asked!r}; valid: True, False, {names}{reason}")


def decide_restoring(
    reducer: Reducer,
    adapter: Adapter,
    backbone: nn.Module,
    outer: Sequence[nn.Module],
    asked: bool | str,
    within: bool,
) -> Restoring:
    """Where and how tokens come back, for `restore=asked`.

    Args:
        outer: the modules that hold the backbone.
        within: tokens also come back between layers.

    Raises: ValueError for False where what follows the layers cannot do without all tokens.
    """
    reads = adapter.reads(backbone, outer)
    if asked is False and reads == "all":
        raise InvalidValueError(
            f"restore=False leaves no map, and what follows the layers of this {type(backbone).__name__} takes all "
            'tokens; leave it out, or give restore="auto" or True'
        )
    named = None if asked == "auto" or isinstance(asked, bool) else asked
    between = named or reducer.restoring
    # Copies, weighed by how many there are, are what pooling reduced tokens by their sizes gives.
    at_end = between if named or outer or reads == "all" else reducer.pooling
    restores = asked if isinstance(asked, bool) else reads != "protected"
    return Restoring(at_end, between, ends=restores, taps=asked is not False, charged=restores or within)


def warn_of_language(
    adapter: Adapter, backbone: nn.Module, outer: Sequence[nn.Module], restoring: Restoring, can_keep: bool
) -> None:
    """Warn if tokens come back before a projector into a language model, where they cost most."""
    holder = adapter.language_model(outer)
    if holder is not None and (restoring.ends or restoring.taps):
        tower = type(backbone).__name__
        warnings.warn(
            f"all tokens of the {tower} are restored before the projector into the language model of this "
            f"{type(holder).__name__}: the {tower} computes less, but nothing is saved in the language model after it"
            + ("; keep=0.1 instead of the budget lets a tenth of them enter that" if can_keep else ""),
            NothingSavedWarning,
            stacklevel=3,
        )

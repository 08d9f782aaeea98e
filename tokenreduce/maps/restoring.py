"""How reduced tokens become all tokens again: five ways of undoing a chain of maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from tokenreduce.maps.kriging import LEAST, NEAREST, REACH, RIDGE, kriging
from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.constants import counting
from tokenreduce.ops.merging import krige_change, restore_change
from tokenreduce.ops.rows import between, with_protected

MODES = {
    "copy": "each token takes what the token that stands for it holds",
    "soft": "each token mixes several reduced tokens, as the method itself says",
    "freeze": "tokens that left stay what they were when they left",
    "delta": "each token is what it was, plus the change since of what stands for it",
    "kriging": "as delta, where the change of merged tokens is predicted for each from what like ones have changed by",
}


class Around(NamedTuple):
    """The tokens before and after a map, all protected tokens included; `empty (B, M)` is True for outputs that hold
    padding alone, None: there are none."""

    before: Tensor
    after: Tensor
    empty: Tensor | None = None


@dataclass(frozen=True)
class Restoring:
    """Where and how the tokens of a patched model come back; modes are names of `MODES`.

    Args:
        at_end: the mode after the last layer.
        between: the mode between two layers, and of collected outputs of single layers.
        ends: all tokens come back after the last layer; else outputs stay reduced.
        taps: outputs of single layers can be collected, with all tokens.
        charged: the budget pays for restoring.
    """

    at_end: str
    between: str
    ends: bool
    taps: bool
    charged: bool


def looks_back(mode: str) -> bool:
    """Whether a mode needs the tokens as they were around each map."""
    return mode in ("freeze", "delta", "kriging")


def restore_tokens(
    mode: str, x: Tensor, maps: Sequence[TokenMap], around: Sequence[Around], prefix: int, suffix: int
) -> Tensor:
    """All tokens `(B, prefix + N + suffix, C)` of `x (B, prefix + M + suffix, C)`, which `maps` made one after the
    other.

    Args:
        mode: one of `MODES`.
        around: the tokens before and after each map, for modes that look back.
    """
    if not looks_back(mode):
        for token_map in undoing(maps, soft=mode == "soft"):
            x = token_map.restore(x, prefix, suffix)
        return x
    for token_map, known in zip(reversed(maps), reversed(around), strict=True):
        if mode == "freeze":
            x = _freeze(x, token_map, known.before, prefix, suffix)
        elif mode == "kriging" and _is_integer(token_map):
            x = _krige(x, token_map, known, prefix, suffix)
        else:
            x = _add_change(x, token_map, known.before, known.after, prefix, suffix)
    return x


def _add_change(x: Tensor, token_map: TokenMap, before: Tensor, after: Tensor, prefix: int, suffix: int) -> Tensor:
    """`before`, plus what has changed since in the output that stands for each token."""
    if _is_integer(token_map):
        restored = restore_change(x, after, before, token_map.dest, prefix, suffix)  # type: ignore[arg-type]
        if restored is not None:
            return restored
    return before + token_map.restore(x - after, prefix, suffix)


def _krige(x: Tensor, token_map: TokenMap, known: Around, prefix: int, suffix: int) -> Tensor:
    """`_add_change`, with what members of merged tokens have changed by beyond these."""
    before, after, empty = known
    dest: Tensor = token_map.dest  # type: ignore[assignment]
    if empty is None:
        restored = krige_change(x, after, before, dest, prefix, suffix, NEAREST, REACH, RIDGE, LEAST)
        if restored is not None:
            return restored
    restored = _add_change(x, token_map, before, after, prefix, suffix)
    now, then, was = (between(rows, prefix, suffix) for rows in (x, after, before))
    beyond = kriging(now, then, was, dest, empty).to(restored.dtype)
    return restored + F.pad(beyond, (0, 0, prefix, suffix))


def undoing(maps: Sequence[TokenMap], soft: bool = True) -> list[TokenMap]:
    """The maps to undo one after the other: integer maps in a row become one, so that features move once."""
    out: list[TokenMap] = []
    for token_map in maps if soft else [_copying(token_map) for token_map in maps]:
        last = out[-1] if out else None
        if last is not None and _is_integer(last) and _is_integer(token_map):
            out[-1] = TokenMap(token_map.count, dest=token_map.dest.gather(1, last.dest))  # type: ignore[union-attr, arg-type]
        else:
            out.append(token_map)
    return out[::-1]


def _is_integer(token_map: TokenMap) -> bool:
    return token_map.undo is None and token_map.dest is not None


def _copying(token_map: TokenMap) -> TokenMap:
    """The map in which each token is restored from one output only: the one it is restored from most."""
    if _is_integer(token_map):
        return token_map
    return TokenMap(token_map.count, dest=token_map.undo_matrix().argmax(2))


def _freeze(x: Tensor, token_map: TokenMap, before: Tensor, prefix: int, suffix: int) -> Tensor:
    """`before`, with what `x` holds now in the places of representatives and of protected tokens."""
    rep = token_map.representatives()
    stays = with_protected(rep, prefix, before.shape[1] - suffix, suffix)
    flat = stays + counting(x.shape[0], x.device, before.shape[1])[:, None]
    rows = before.reshape(-1, before.shape[2]).index_copy(0, flat.flatten(), x.reshape(-1, x.shape[2]))
    return rows.view_as(before)

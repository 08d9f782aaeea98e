"""The hooks on a vision tower: what it puts out says what it encoded, and goes so far as the features go."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tokenreduce.ops.attention import class_rows
from tokenreduce.ops.modes import without_autocast

STAMP = "tokenreduce"  # the attribute of a tower's output which says that its units are whole


class Encoded(NamedTuple):
    """What a patched model's tower says of what it encoded: the grids of images or videos, or the sizes of images in
    pixels, where it was given them, and the attention of the class token to all tokens in the layers that were to show
    it, where the method reads it."""

    grids: tuple[tuple[int, ...], ...] = ()
    class_attention: Tensor | None = None
    sizes: tuple[tuple[int, ...], ...] = ()


class _Shown(threading.local):
    def __init__(self) -> None:
        self.projected: list[Tensor] = []  # queries and keys of the layers of the tower that show their attention


_shown = _Shown()


def show(projection: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
    """Keep the queries or keys of a layer until the tower ends."""
    _shown.projected.append(output.detach())


def stamp(tower: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Leave a stamp on what the tower puts out, which goes with the features until they are used."""
    projected, _shown.projected = _shown.projected, []
    if output is None or isinstance(output, tuple):
        return
    grids, sizes = (rows_of(kwargs.get(name)) for name in ("grid_thw", "image_sizes"))
    setattr(output, STAMP, Encoded(grids, attention_of_class(projected, tower) if projected else None, sizes))


def rows_of(table: Any) -> tuple[tuple[int, ...], ...]:
    """The rows of a tensor or list of numbers."""
    return () if table is None else tuple(tuple(row) for row in torch.as_tensor(table).tolist())


def layers_taken(states: Any, layers: Any) -> list[Any]:
    """The layers whose outputs are the hidden `states`, a number or several, from the end where negative."""
    taken = [states] if isinstance(states, int) else states
    return [layers[state % (len(layers) + 1) - 1] for state in taken]  # state 0 is the embedding


def attention_of_class(projected: list[Tensor], tower: Any) -> Tensor:
    """`(images, tokens)`: the mean over layers and heads of the first token's attention, of pairs of queries and keys
    `(images, tokens, H d)`."""
    split = [x.unflatten(-1, (tower.config.num_attention_heads, -1)).transpose(1, 2) for x in projected]
    with torch.no_grad(), without_autocast(projected[0].device):
        rows = [class_rows(q, k, None, 1) for q, k in zip(split[::2], split[1::2], strict=True)]
    return torch.stack(rows).mean(0)

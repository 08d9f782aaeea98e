"""The hooks on a vision tower: what it puts out says what it encoded, and goes so far as the features go."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tokenreduce.budget.phase import working
from tokenreduce.ops.attention import class_rows, received_and_own
from tokenreduce.ops.modes import without_autocast

STAMP = "tokenreduce"  # the attribute of a tower's output which says that its units are whole


class Encoded(NamedTuple):
    """What a patched model's tower says of what it encoded: the grids of images or videos, or the sizes of images in
    pixels, where it was given them; and, where the method reads it, the attention of the class token to all tokens in
    the layers that were to show it, and what all tokens receive there: `(images, tokens)`, or `(tokens,)` where images
    are of any size."""

    grids: tuple[tuple[int, ...], ...] = ()
    class_attention: Tensor | None = None
    received_attention: Tensor | None = None
    sizes: tuple[tuple[int, ...], ...] = ()


class _Shown(threading.local):
    def __init__(self) -> None:
        self.projected: list[Tensor] = []  # queries and keys of the layers of the tower that show their attention
        self.asked: set[str] = set()
        self.received: list[Tensor] = []  # of images of any size


_shown = _Shown()


def show(projection: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
    """Keep the queries or keys of a layer until the tower ends, for the attention of its class token."""
    _shown.projected.append(output.detach())
    _shown.asked.add("class_attention")


def show_whole(projection: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
    """For what tokens receive."""
    _shown.projected.append(output.detach())
    _shown.asked.add("received_attention")


def show_both(projection: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
    """For either."""
    show(projection, args, output)
    _shown.asked.add("received_attention")


def show_received(attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Keep what the tokens of a layer receive that takes images of any size as one sequence, with their borders."""
    x = args[0] if args else kwargs["hidden_states"]
    rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb_vision
    with working("reducer"), torch.no_grad(), without_autocast(x.device):
        queries, keys, _ = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1)).unbind(-3)
        queries, keys = (y.transpose(0, 1)[None] for y in rotate(queries, keys, *kwargs["position_embeddings"]))
        lengths = kwargs["cu_seqlens"].diff().tolist()
        parts = zip(queries.split(lengths, 2), keys.split(lengths, 2), strict=True)
        _shown.received.append(torch.cat([received_and_own(q, k)[0][0].mean(0) for q, k in parts]))


def stamp(tower: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Leave a stamp on what the tower puts out, which goes with the features until they are used."""
    projected, _shown.projected = _shown.projected, []
    received, _shown.received = _shown.received, []
    asked, _shown.asked = _shown.asked, set()
    if output is None or isinstance(output, tuple):
        return
    grids, sizes = (rows_of(kwargs.get(name)) for name in ("grid_thw", "image_sizes"))
    pairs, found = pairs_of(projected, tower), {name: FOUND[name] for name in asked}
    shown = {name: mean_over_layers(of, pairs) for name, of in found.items()}
    shown |= {"received_attention": received[0]} if received else {}
    setattr(output, STAMP, Encoded(grids, **shown, sizes=sizes))


def rows_of(table: Any) -> tuple[tuple[int, ...], ...]:
    """The rows of a tensor or list of numbers."""
    return () if table is None else tuple(tuple(row) for row in torch.as_tensor(table).tolist())


def layers_taken(states: Any, layers: Any) -> list[Any]:
    """The layers whose outputs are the hidden `states`, a number or several, from the end where negative."""
    taken = [states] if isinstance(states, int) else states
    return [layers[state % (len(layers) + 1) - 1] for state in taken]  # state 0 is the embedding


def pairs_of(projected: list[Tensor], tower: Any) -> list[tuple[Tensor, Tensor]]:
    """Queries and keys `(images, H, tokens, d)` of each layer, of projections `(images, tokens, H d)`."""
    split = [x.unflatten(-1, (tower.config.num_attention_heads, -1)).transpose(1, 2) for x in projected]
    return list(zip(split[::2], split[1::2], strict=True))


def mean_over_layers(of: Callable[[Tensor, Tensor], Tensor], pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """`(images, tokens)`: the mean of what is asked `of` the queries and keys of each layer."""
    with working("reducer"), torch.no_grad(), without_autocast(pairs[0][0].device):
        return torch.stack([of(queries, keys) for queries, keys in pairs]).mean(0)


def attention_of_class(queries: Tensor, keys: Tensor) -> Tensor:
    """The first token's attention, mean over heads."""
    return class_rows(queries, keys, None, 1)


def what_tokens_receive(queries: Tensor, keys: Tensor) -> Tensor:
    """The attention of all tokens, the class token included, to each; mean over heads."""
    return received_and_own(queries, keys)[0].mean(1)


FOUND = {"class_attention": attention_of_class, "received_attention": what_tokens_receive}

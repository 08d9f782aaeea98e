"""The hooks on a vision tower: what it puts out says what it encoded, and goes so far as the features go."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from tokenreduce.budget.phase import working
from tokenreduce.ops.attention import class_rows, received_and_own
from tokenreduce.ops.modes import without_autocast

STAMP = "tokenreduce"  # the item of a tower's output that says that its units are whole; copies elsewhere keep items


class Encoded(NamedTuple):
    """What a patched model's tower says of what it encoded: the grids of images or videos, or the sizes of images in
    pixels, where it was given them; and, where the method reads it, the attention of the class token to all tokens in
    the layers that were to show it, and what all tokens receive there: `(images, tokens)`, or `(tokens,)` where images
    are of any size; and the layers whose states it was asked for, where it was told."""

    grids: tuple[tuple[int, ...], ...] = ()
    class_attention: Tensor | None = None
    received_attention: Tensor | None = None
    sizes: tuple[tuple[int, ...], ...] = ()
    taken: tuple[int, ...] = ()


class _Shown(threading.local):
    def __init__(self) -> None:
        self.running = False  # a backward pass may run layers again, which show nothing then
        self.empty()

    def empty(self) -> None:
        self.projected: list[Tensor] = []  # queries and keys of the layers of the tower that show their attention
        self.asked: set[str] = set()
        self.received: list[Tensor] = []  # of images of any size


_shown = _Shown()


def enter_tower(tower: nn.Module, args: tuple[Any, ...]) -> None:
    """Forget what a forward that was interrupted has shown."""
    _shown.empty()
    _shown.running = True


def show(projection: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
    """Keep the queries or keys of a layer until the tower ends, for the attention of its class token."""
    note(output, "class_attention")


def show_whole(projection: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
    """For what tokens receive."""
    note(output, "received_attention")


def show_both(projection: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
    """For either."""
    note(output, "class_attention", "received_attention")


def note(output: Tensor, *asked: str) -> None:
    """Keep a layer's queries or keys, for what is asked of them."""
    if _shown.running:
        _shown.projected.append(output.detach())
        _shown.asked.update(asked)


def show_received(attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Keep what the tokens of a layer receive that takes images of any size as one sequence, with their borders."""
    if not _shown.running:
        return
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
    projected, received, asked = _shown.projected, _shown.received, _shown.asked
    stop_tower()
    if output is None or isinstance(output, tuple):
        return
    grids, sizes = (rows_of(kwargs.get(name)) for name in ("grid_thw", "image_sizes"))
    pairs = pairs_of(projected, tower)
    padding = padding_of(kwargs.get("patch_attention_mask")) if asked else None  # it may wait for the device
    shown = {name: mean_over_layers(FOUND[name], pairs, padding) for name in asked}
    shown |= {"received_attention": received[0]} if received else {}
    output[STAMP] = Encoded(grids, **shown, sizes=sizes, taken=numbers_of(kwargs.get("output_hidden_states")))


def stop_tower() -> None:
    """Keep nothing of what was shown."""
    _shown.empty()
    _shown.running = False


def numbers_of(states: Any) -> tuple[int, ...]:
    """The numbers of hidden states that are named by one or several; none where all or none are asked for."""
    if states is None or isinstance(states, bool):
        return ()
    return (states,) if isinstance(states, int) else tuple(states)


def rows_of(table: Any) -> tuple[tuple[int, ...], ...]:
    """The rows of a tensor or list of numbers."""
    return () if table is None else tuple(tuple(row) for row in torch.as_tensor(table).tolist())


def layers_taken(states: Any, layers: Any) -> list[Any]:
    """The layers whose outputs are the hidden `states`, a number or several, from the end where negative."""
    return [layers[state - 1] for state in from_the_start(numbers_of(states), len(layers))]


def from_the_start(states: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """The same hidden states of a tower of so many layers, none counted from the end: state 0 is the embedding."""
    return tuple(state % (depth + 1) for state in states)


def pairs_of(projected: list[Tensor], tower: Any) -> list[tuple[Tensor, Tensor]]:
    """Queries and keys `(images, H, tokens, d)` of each layer, of projections `(images, tokens, H d)`."""
    split = [x.unflatten(-1, (tower.config.num_attention_heads, -1)).transpose(1, 2) for x in projected]
    return list(zip(split[::2], split[1::2], strict=True))


def padding_of(seen: Tensor | None) -> Tensor | None:
    """`(images, tokens)`, True for padding, of patches `seen (images, height, width)`; None if there is none."""
    return None if seen is None or bool(seen.all()) else ~seen.flatten(1).bool()


def mean_over_layers(of: Callable[..., Tensor], pairs: list[tuple[Tensor, Tensor]], padding: Tensor | None) -> Tensor:
    """`(images, tokens)`: the mean of what is asked `of` the queries and keys of each layer."""
    with working("reducer"), torch.no_grad(), without_autocast(pairs[0][0].device):
        found = [of(queries, keys, None if padding is None else padding.to(keys.device)) for queries, keys in pairs]
        return torch.stack([x.to(found[0].device) for x in found]).mean(0)


def attention_of_class(queries: Tensor, keys: Tensor, padding: Tensor | None) -> Tensor:
    """The first token's attention, mean over heads."""
    return class_rows(queries, keys, bias_of(padding), 1)


def what_tokens_receive(queries: Tensor, keys: Tensor, padding: Tensor | None) -> Tensor:
    """The attention of all tokens, the class token included, to each; mean over heads."""
    return received_and_own(queries, keys, bias_of(padding), padding)[0].mean(1)


def bias_of(padding: Tensor | None) -> Tensor | None:
    """What hides padding as a key."""
    if padding is None:
        return None
    return torch.zeros(padding.shape, device=padding.device).masked_fill(padding, -torch.inf)[:, None, None]


FOUND = {"class_attention": attention_of_class, "received_attention": what_tokens_receive}


def projections(layers: Iterable[Any]) -> list[nn.Module]:
    """To queries and keys, layer by layer."""
    return [projection for layer in layers for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj)]


def behind(x: Tensor | None, protected: int, grid: tuple[int, int], group: int = 1) -> Iterable[Tensor | None]:
    """Of `x (images, tokens)` a row an image: of what comes after the first `protected` tokens of the tower, a grid,
    the mean of `group` x `group`. Another number of tokens stays as it is; None again and again."""
    if x is None:
        return repeat(None)
    x = x[:, protected:]
    if group > 1 and x.shape[1] == math.prod(grid):
        x = avg_pool2d(x.unflatten(1, (1, *grid)), group).flatten(1)
    return iter(x)


def is_siglip(model: Any) -> bool:
    """Whether its vision tower is SigLIP, whose layers are known; any other may be there."""
    return bool(model.config.vision_config.model_type == "siglip_vision_model")

"""`Run`: the state of one forward. Born in the first block, gone at the end, never stored on a module.

Blocks only receive `x`, so sizes and maps travel beside it; `tokenreduce.stack` holds the runs of a thread.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from tokenreduce.kernels.merging import size_bias
from tokenreduce.kernels.native import choose
from tokenreduce.kernels.size_channels import size_mask
from tokenreduce.layer_tokens import LayerTokens
from tokenreduce.places import Places
from tokenreduce.reduction import Reduction
from tokenreduce.registry import Reducer
from tokenreduce.restoring import Around, looks_back, restore_tokens
from tokenreduce.token_map import TokenMap, with_protected

# Queries, keys and additive logits as the attention of the current layer uses them, from those that hooks saw.
Attend = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor | None]]
# A video (B, C, frames, height, width), and the sides of the tubelets of which its tokens are made.
Video = tuple[Tensor, tuple[int, ...]]


class Run:
    """One forward of a reduced model.

    Args:
        reduction: the patch.
        entered: image tokens that enter the first layer.
        grid: their grid, or None where there is none.
        taps: layers whose output other code collects: it gets all tokens in raster order, and the reduced ones wait
            here for the next layer.
        valid: `(B, prefix + N + suffix)`, False for tokens that only pad: they get size 0, and so no attention.
        surrounded: code of ours calls all layers, and restores and closes at the end.
        video: what the tokens were made of, where the method asks for pixels.
    """

    def __init__(
        self,
        reduction: Reduction,
        entered: int,
        grid: tuple[int, ...] | None,
        taps: frozenset[int] = frozenset(),
        valid: Tensor | None = None,
        surrounded: bool = False,
        video: Video | None = None,
    ) -> None:
        self.reduction, self.entered, self.grid = reduction, entered, grid
        self.placement, self.protected = reduction.reducer.placement, reduction.geometry.protected
        self.taps, self.surrounded, self.video = taps, surrounded, video
        self.planned = None if reduction.adaptive else reduction.counts(entered)
        self.planned_to_enter = () if self.planned is None else reduction.entering(entered, self.planned)
        self.counts: list[int] = []  # image tokens left after each layer so far
        self.next_layer = 0
        self.valid = None if valid is None else valid.float()
        start = reduction.geometry.prefix
        self.first_sizes = None if self.valid is None else self.valid[:, start : start + entered]
        self.history: list[tuple[int, TokenMap]] = []  # all maps with their layers
        at_end = looks_back(reduction.restoring_end) and reduction.restore
        self.keeps_around = at_end or (looks_back(reduction.restoring) and bool(taps or reduction.fresh))
        self.captured: dict[str, Tensor] = {}
        self.attend: Attend | None = None
        self.waiting: Tensor | None = None
        self.given: Tensor | None = None
        self.shown: Tensor | None = None  # `given` in the shape in which a layer that works on maps returned it
        self.phase = "model"
        self.kernel: Any = None
        self.method_state: Any = None
        self._start()

    def _start(self) -> None:
        """The state of tokens that are all there, at the beginning and after restoring within the model."""
        reads = self.reduction.reducer.required() | self.reduction.reducer.uses
        follows = frozenset({"origin"}) if self.reduction.geometry.follows_origin else frozenset()
        self.sizes = self.first_sizes
        self.bias: Tensor | None = None
        self.maps: list[TokenMap] = []  # since all tokens were there
        self.around: list[Around] = []
        self.places = Places(self.entered, self.grid, reads | follows)

    def attention_bias(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor | None:
        """Additive logits `(B, 1, 1, N)`, log size of each key, 0 for protected tokens; None while all sizes are 1.

        Without a `dtype` they are for attention over `x`, which may take them as channels: see `size_mask`.
        """
        if self.sizes is None or not (self.reduction.prop_attn or self.valid is not None):
            return None
        if self.bias is None:
            shape = self.reduction.geometry
            sizes = self.sizes if self.reduction.prop_attn else (self.sizes > 0).float()
            if self.valid is None:
                self.bias = size_bias(sizes, shape.prefix, shape.suffix)
            else:
                protected = self.valid.log()
                behind = protected[:, protected.shape[1] - shape.suffix :]
                self.bias = torch.cat([protected[:, : shape.prefix], sizes.log(), behind], 1)[:, None, None, :]
        if dtype is None:
            return size_mask(self.bias, x)
        return self.bias if self.bias.dtype == dtype else self.bias.to(dtype)

    def rows(self, table: Tensor, x: Tensor) -> Tensor:
        """The rows of a table of the input's image tokens, `(N, D)`, `(H, N, D)` or `(B, H, N, D)`, that belong to the
        tokens of `x`: those of their representatives, `(B, 1 or H, M, D)`. The table itself before any reduction."""
        if not self.maps:
            return table
        origin = self.places.origin(x.shape[0], x.device)
        if table.ndim == 2:
            return table[origin][:, None]
        if table.ndim == 3:
            return table[:, origin].transpose(0, 1)
        index = origin[:, None, :, None].expand(-1, table.shape[1], -1, table.shape[-1])
        return table.expand(origin.shape[0], -1, -1, -1).gather(2, index)

    def pairs(self, table: Tensor, x: Tensor) -> Tensor:
        """The entries of a table of all the input's tokens in pairs, `(1 or B, H, N, N)`, protected ones included, that
        belong to the tokens of `x`: `(B, H, M, M)`. The table itself before any reduction."""
        if not self.maps:
            return table
        shape = self.reduction.geometry
        origin = self.places.origin(x.shape[0], x.device)
        tokens = with_protected(origin, shape.prefix, shape.prefix + self.entered, shape.suffix)
        if table.shape[0] == 1:
            return table[0][:, tokens[:, :, None], tokens[:, None, :]].transpose(0, 1)
        rows = table.gather(2, tokens[:, None, :, None].expand(-1, table.shape[1], -1, table.shape[3]))
        return rows.gather(3, tokens[:, None, None, :].expand(*rows.shape[:3], -1))

    def note_keys(self, keys: Tensor) -> None:
        """Capture `mean_keys` of keys `(B, H, N, d)`, or the keys for a method whose kernel averages them."""
        keys = keys.detach() if keys.requires_grad else keys
        averages = self.reduction.reducer.averages_keys and self.valid is None
        self.captured["mean_keys"] = keys if averages else keys.float().mean(1)

    def shows(self, attend: Attend) -> None:
        """Say how the current layer makes of queries and keys, as hooks see them, what its attention uses."""
        self.attend = attend

    def may_reduce(self, layer: int) -> bool:
        """Whether the schedule, or the method in the place of one, removes something in this layer."""
        if self.planned is None:
            return layer in self.reduction.deciding_layers
        return self.planned[layer] < self.planned_to_enter[layer]

    def reduce(self, layer: int, x: Tensor, placement: str) -> Tensor:
        """Reduce `x (B, prefix + N + suffix, C)` if the schedule says so at this layer and placement."""
        if self.placement != placement or not self.may_reduce(layer):
            return x
        before = x
        self.phase = "reducer"
        try:
            fused = self.kernel is not None and not x.requires_grad
            token_map, x = self._merge_at_once(layer, x) if fused else self._plan_and_apply(layer, x)
        finally:
            self.phase = "model"
        if token_map is None:
            return x
        self.maps.append(token_map)
        self.history.append((layer, token_map))
        if self.keeps_around:
            self.around.append((before, x))
        return x

    def _merge_at_once(self, layer: int, x: Tensor) -> tuple[TokenMap, Tensor]:
        """By the method's own kernel; everything that is not needed for that is left out, see `LayerTokens`."""
        shape, sizes, keys = self.reduction.geometry, self.sizes, self.captured["mean_keys"]
        keep = self.planned[layer]  # type: ignore[index]
        merged = self.reduction.reducer.merge_at_once(self.kernel, x, keys, sizes, keep, shape.prefix, shape.suffix)
        token_map, x, self.sizes, self.bias = merged
        self.places.follow(token_map, sizes)
        return token_map, x

    def _plan_and_apply(self, layer: int, x: Tensor) -> tuple[TokenMap | None, Tensor]:
        """None: the method keeps all tokens."""
        shape, reducer = self.reduction.geometry, self.reduction.reducer
        with without_autocast(x.device):
            with without_gradients():
                tokens = LayerTokens(self, layer, x)
                keep = reducer.decide(tokens, self.method_state) if self.planned is None else self.planned[layer]
                if keep >= tokens.count:
                    return None, x
                token_map = reducer.plan(tokens, keep, self.method_state)
                self.places.follow(token_map, self.sizes)
            if self.sizes is None and token_map.drops and token_map.size_weight is None:  # sizes stay 1
                x = token_map.apply(x, None, shape.prefix, shape.suffix)
            else:
                x, self.sizes, bias = token_map.merge(x, self.sizes, shape.prefix, shape.suffix)
                self.bias = bias if self.valid is None else None
        return token_map, x

    def restore(self, x: Tensor, at_end: bool = False) -> Tensor:
        """All tokens again, in the order in which they entered: for a map, or for what follows the last layer."""
        mode = self.reduction.restoring_end if at_end else self.reduction.restoring
        shape = self.reduction.geometry
        self.phase = "restore"
        with without_autocast(x.device):
            x = restore_tokens(mode, x, self.maps, self.around, shape.prefix, shape.suffix)
        self.phase = "model"
        return x

    def blank(self, x: Tensor) -> Tensor:
        """`x` with zeros in the place of padding, so that what it held decides nothing."""
        return x if self.valid is None else x.masked_fill(self.valid[..., None] == 0, 0)

    def enter(self, layer: int, x: Tensor) -> Tensor:
        """The tokens to go on with, when a layer receives `x`."""
        if layer == 0:
            x = self.blank(x)
        waiting, self.waiting = self.waiting, None
        if self.maps and layer in self.reduction.fresh:
            x = self.restore(x) if waiting is None else x  # what waits was restored already
            self._start()
        elif waiting is not None:
            x = waiting if x is self.given else self._follow_change(waiting, x)
        return x

    def _follow_change(self, waiting: Tensor, x: Tensor) -> Tensor:
        """The waiting tokens, changed as a hook changed what the last layer returned."""
        shape = self.reduction.geometry
        change = x - self.given  # type: ignore[operator]
        for token_map in self.maps:
            pooled = TokenMap(token_map.count, dest=token_map.dest_or_argmax())
            change = pooled.apply(change, None, shape.prefix, shape.suffix)
        return waiting + change

    def leave(self, layer: int, x: Tensor, whole: bool = False) -> Tensor:
        """What the layer returns: all tokens if the layer is tapped or `whole` is asked for."""
        if self.captured:
            self.captured, self.attend = {}, None
        self.next_layer = layer + 1
        self.counts.append(x.shape[1] - self.protected)
        if self.maps and (whole or layer in self.taps):
            self.waiting = x
            x = self.given = self.restore(x, at_end=layer not in self.taps)
        return x

    def begin(self, x: Tensor) -> None:
        """Make the method's state of the tokens that enter the first block, and choose its kernel."""
        reducer = self.reduction.reducer
        if reducer.kernel and self.planned is not None and self.valid is None and not torch.is_grad_enabled():
            self.kernel = choose(reducer.kernel, x)
        if type(reducer).begin is Reducer.begin:
            return
        self.phase = "reducer"
        try:
            with torch.no_grad(), without_autocast(x.device):
                self.method_state = reducer.begin(LayerTokens(self, 0, x))
        finally:
            self.phase = "model"


def without_gradients() -> AbstractContextManager[Any]:
    """Matching has no gradient."""
    return torch.no_grad() if torch.is_grad_enabled() else nullcontext()


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Matching runs in fp32 also under autocast."""
    enabled = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if enabled else nullcontext()

"""`Run`: the state of one forward. Born in the first block, gone at the end, never stored on a module.

Blocks only receive `x`, so sizes and maps travel beside it in a thread-local stack: the one side channel that
`torch.compile(fullgraph=True)`, `torch.export`, deepcopy, pickle and threads all survive.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenreduce.attention import image_sources
from tokenreduce.errors import InvalidValueError
from tokenreduce.places import Places
from tokenreduce.reduction import Reduction
from tokenreduce.registry import Reducer
from tokenreduce.token_map import TokenMap
from tokenreduce.tokens import Tokens


class _ThreadState(threading.local):
    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.grid: tuple[Reduction, tuple[int, ...]] | None = None


_state = _ThreadState()


@dataclass(frozen=True)
class Record:
    """What the last forward did: image tokens that entered, after each layer, and the maps with their layers."""

    entered: int
    counts: tuple[int, ...]
    maps: tuple[tuple[int, TokenMap], ...]


_records: weakref.WeakKeyDictionary[Reduction, Record] = weakref.WeakKeyDictionary()


class Run:
    """One forward of a reduced model.

    `taps`: the blocks are called one by one by code that may collect each output as a map (`forward_intermediates`),
    so every block returns all tokens in raster order and the reduced ones wait here for the next block.
    """

    def __init__(self, reduction: Reduction, x: Tensor, taps: bool) -> None:
        shape = reduction.geometry
        self.reduction = reduction
        self.taps = taps
        self.entered = x.shape[1] - shape.protected
        self.planned = None if reduction.adaptive else reduction.counts(self.entered)
        self.counts: list[int] = []  # image tokens left after each layer so far
        self.next_layer = 0
        self.sizes: Tensor | None = None
        self.bias: Tensor | None = None
        self.maps: list[tuple[int, TokenMap]] = []
        # For "delta" restoring: the tokens before and after each map.
        self.around: list[tuple[Tensor, Tensor]] = []
        self.keeps_around = reduction.reducer.restoring == "delta" and (reduction.restore or taps)
        self.captured: dict[str, Tensor] = {}
        self.waiting: Tensor | None = None
        self.given: Tensor | None = None
        self.phase = "model"
        noted = _state.grid
        grid = noted[1] if noted is not None and noted[0] is reduction else shape.grid
        self.grid = grid if _product(grid) == self.entered else None
        reducer = reduction.reducer
        self.places = Places(self.entered, self.grid, reducer.required() | reducer.uses)
        self.method_state: Any = None

    def attention_bias(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor | None:
        """Additive logits `(B, 1, 1, N)`, log size of each key, 0 for protected tokens; None while all sizes are 1."""
        if self.sizes is None or not self.reduction.prop_attn:
            return None
        if self.bias is None:
            shape = self.reduction.geometry
            self.bias = F.pad(self.sizes.log(), (shape.prefix, shape.suffix))[:, None, None, :]
        return self.bias.to(dtype or x.dtype)

    def may_reduce(self, layer: int) -> bool:
        """Whether the schedule, or the method in the place of one, removes something in this layer."""
        if self.planned is None:
            return layer in self.reduction.deciding_layers
        return self.planned[layer] < (self.planned[layer - 1] if layer else self.entered)

    def reduce(self, layer: int, x: Tensor, placement: str) -> Tensor:
        """Reduce `x (B, prefix + N + suffix, C)` if the schedule says so at this layer and placement."""
        shape, reducer = self.reduction.geometry, self.reduction.reducer
        if reducer.placement != placement or not self.may_reduce(layer):
            return x
        before = x
        self.phase = "reducer"
        try:
            with torch.no_grad(), without_autocast(x.device):
                tokens = self._tokens(layer, x)
                keep = reducer.decide(tokens, self.method_state) if self.planned is None else self.planned[layer]
                if keep >= tokens.count:
                    return x
                token_map = reducer.plan(tokens, keep, self.method_state)
                self.places.follow(token_map, self.sizes)
            with without_autocast(x.device):
                x = token_map.apply(x, self.sizes, shape.prefix, shape.suffix)
                if self.sizes is not None or not token_map.drops or token_map.size_weight is not None:
                    self.sizes, self.bias = token_map.sizes(self.sizes), None
        finally:
            self.phase = "model"
        self.maps.append((layer, token_map))
        if self.keeps_around:
            self.around.append((before, x))
        return x

    def restore(self, x: Tensor) -> Tensor:
        """All tokens again, in the order in which they entered."""
        shape = self.reduction.geometry
        self.phase = "restore"
        maps = [token_map for _, token_map in self.maps]
        with without_autocast(x.device):
            if self.keeps_around:
                for token_map, (before, after) in zip(maps[::-1], self.around[::-1], strict=True):
                    x = before + token_map.restore(x - after, shape.prefix, shape.suffix)
            else:
                for token_map in restoring(maps):
                    x = token_map.restore(x, shape.prefix, shape.suffix)
        self.phase = "model"
        return x

    def enter(self, x: Tensor) -> Tensor:
        """The reduced tokens to go on with, when a block receives `x`."""
        if not self.taps or self.waiting is None:
            return x
        if x is self.given:
            return self.waiting
        # A hook changed what the last block returned: let the reduced tokens follow the change.
        shape = self.reduction.geometry
        change = x - self.given  # type: ignore[operator]
        for _, token_map in self.maps:
            pooled = TokenMap(token_map.count, dest=token_map.dest_or_argmax())
            change = pooled.apply(change, None, shape.prefix, shape.suffix)
        return self.waiting + change

    def leave(self, layer: int, x: Tensor) -> Tensor:
        """What the block returns."""
        self.captured = {}
        self.next_layer = layer + 1
        self.counts.append(x.shape[1] - self.reduction.geometry.protected)
        if self.taps and self.maps:
            self.waiting, x = x, self.restore(x)
            self.given = x
        if self.taps:
            record(self)
            if self.next_layer == self.reduction.geometry.depth:
                close(self)
        return x

    def begin(self, x: Tensor) -> None:
        """Make the method's state of the tokens that enter the first block."""
        reducer = self.reduction.reducer
        if type(reducer).begin is Reducer.begin:
            return
        self.phase = "reducer"
        try:
            with torch.no_grad(), without_autocast(x.device):
                self.method_state = reducer.begin(self._tokens(0, x))
        finally:
            self.phase = "model"

    def _tokens(self, layer: int, x: Tensor) -> Tokens:
        shape = self.reduction.geometry
        start, end = shape.prefix, x.shape[1] - shape.suffix
        sources: dict[str, Callable[[], Tensor]] = {
            name: (lambda full=full: full[..., start : full.shape[-2] - shape.suffix, :])  # type: ignore[misc]
            for name, full in self.captured.items()
        }
        if "queries" in self.captured and "keys" in self.captured:
            queries, keys = self.captured["queries"], self.captured["keys"]
            image = slice(start, keys.shape[2] - shape.suffix)
            sources |= image_sources(
                queries, keys, self.attention_bias(queries, torch.float32), shape.class_tokens, image
            )
        sources["origin"] = lambda: self.places.origin(x.shape[0], x.device)
        if self.grid is not None:
            sources["positions"] = lambda: self.places.positions(x.shape[0], x.device)
        return Tokens(x[:, start:end], self.sizes, sources, self.grid, start, shape.suffix, layer, shape.depth)


def open_run(reduction: Reduction, x: Tensor, taps: bool) -> Run | None:
    """A new run on top of the stack, or None if the schedule removes nothing from so many tokens."""
    # What an exception or a forward that stopped early left behind:
    _state.runs[:] = [run for run in _state.runs if not (run.taps and run.reduction is reduction)]
    if reduction.is_identity(x.shape[1] - reduction.geometry.protected):
        return None
    if taps and not reduction.restore_taps:
        raise InvalidValueError(
            "restore=False leaves no map to return, but the blocks were called one by one, as "
            'forward_intermediates does; patch with restore="auto" or True, or use forward_features'
        )
    run = Run(reduction, x, taps)
    _state.runs.append(run)
    try:
        run.begin(x)
    except BaseException:
        close(run)
        raise
    return run


def close(run: Run) -> None:
    """Take `run` off the stack; runs of other models may lie above it."""
    _state.runs[:] = [other for other in _state.runs if other is not run]


def run_for(reduction: Reduction, layer: int, x: Tensor) -> Run | None:
    """The run that block `layer` takes part in, opened by block 0 where nothing around the blocks did.

    None: nothing is ever removed.
    """
    for run in reversed(_state.runs):
        if run.reduction is reduction and run.next_layer == layer and (layer or not run.taps):
            return run
    if layer == 0:
        return open_run(reduction, x, taps=True)
    if reduction.is_identity(x.shape[1] - reduction.geometry.protected):
        return None
    raise InvalidValueError(
        f"block {layer} of a reduced model was called outside a forward pass, or in another thread than "
        f"block {layer - 1}; "
        "gradient checkpointing does that: switch it off (set_grad_checkpointing(False)) or call "
        "tokenreduce.unpatch(model)"
    )


def capturing(reduction: Reduction) -> Run | None:
    """The run of this model if its current layer reduces, so that hooks keep nothing that no reducer will see."""
    for run in reversed(_state.runs):
        if run.reduction is reduction:
            return run if run.may_reduce(run.next_layer) else None
    return None


def note_grid(reduction: Reduction, grid: tuple[int, ...]) -> None:
    """Remember the grid that the patch embedding just made, for the run that follows in this thread."""
    _state.grid = (reduction, grid)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Matching runs in fp32 also under autocast."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


def current_phase() -> str:
    """What the current run is doing: "model", "reducer" or "restore"."""
    for run in _state.runs:
        if run.phase != "model":
            return run.phase
    return "model"


def record(run: Run) -> None:
    """Store what `report` shows. Skipped while compiling: it would make every map an output of the graph."""
    if not torch.compiler.is_compiling():
        _records[run.reduction] = Record(run.entered, tuple(run.counts), tuple(run.maps))


def last_record(reduction: Reduction) -> Record | None:
    """The record of the last forward in any thread."""
    return _records.get(reduction)


def restoring(maps: list[TokenMap]) -> list[TokenMap]:
    """The maps to undo one after the other: integer maps in a row become one, so that features move once."""
    out: list[TokenMap] = []
    for token_map in maps:
        if (
            out
            and token_map.undo is None
            and out[-1].undo is None
            and token_map.dest is not None
            and out[-1].dest is not None
        ):
            out[-1] = TokenMap(token_map.count, dest=token_map.dest.gather(1, out[-1].dest))
        else:
            out.append(token_map)
    return out[::-1]


def _product(grid: tuple[int, ...]) -> int:
    total = 1
    for side in grid:
        total *= side
    return total

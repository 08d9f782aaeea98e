"""transformers LW-DETR: a ViT whose tokens come as windows in the batch, `(B W, n, C)`.

Layers with window attention need all tokens. The others let the windows of an image attend to each other: they reduce,
on `(B, N, C)` in raster order, and what has all tokens is windows again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from math import isqrt
from typing import Any, ClassVar, NoReturn

from torch import Tensor, nn
from transformers.models.lw_detr.modeling_lw_detr import LwDetrViTBackbone, LwDetrViTLayer

from tokenreduce.budget.geometry import Geometry
from tokenreduce.errors import InvalidValueError
from tokenreduce.forward.noted import noted_grid
from tokenreduce.forward.reduction import Reduction
from tokenreduce.forward.run import Run
from tokenreduce.forward.stack import join, leave

from ..shared.adapter import Reads
from ..shared.layered import ReducedLayer
from ..shared.masks import refuse_masks
from ..shared.standing import keep_hold
from ._layers import HuggingFaceAdapter, PretrainedLayer, check_implementation, implementation

Grid = tuple[int, ...]


class ReducedLwDetrViTLayer(PretrainedLayer, LwDetrViTLayer):
    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        reduction, layer, _ = self._tokenreduce
        windows, original = hidden_states, super(ReducedLayer, self).forward
        side, count = isqrt(self.num_windows), self.num_windows * windows.shape[1]
        # Only the first layer opens a run, of its tokens; the others are asked how many there would be.
        opens = layer == 0 and not reduction.is_identity(count)
        grid = noted_grid(reduction, count) if opens else None
        if opens and grid is None:
            height, width = reduction.geometry.grid
            raise InvalidValueError(
                f"{count} tokens are not those of a {height} x {width} grid, or of one that was embedded since; call "
                "the whole backbone"
            )
        tokens = windows.new_empty(1, count, 0) if grid is None else as_tokens(windows, grid, side)
        run = join(reduction, layer, tokens, self.collected, lambda: self.valid(reduction, windows, **kwargs))
        if run is None:
            return original(windows, **kwargs)
        keep_hold(self, reduction)
        grid = run.grid
        handed_out = run.taps.tokens_of(windows)
        if handed_out is not None:
            tokens = handed_out
        elif run.maps and run.taps.waiting is None:
            tokens = windows  # which they are no longer
        elif not opens:
            tokens = as_tokens(windows, grid, side)
        tokens = run.enter(layer, tokens)
        if self.window:
            tokens = as_tokens(original(as_windows(tokens, grid, side), **kwargs), grid, side)
        else:
            tokens = self.attention_line(run, run.reduce(layer, tokens, "pre"), **kwargs)
            tokens = self.mlp_line(run.reduce(layer, tokens, "mid"))
            tokens = run.reduce(layer, tokens, "post")
        tokens = leave(run, layer, tokens)
        if tokens.shape[1] < run.entered:
            return tokens
        return run.taps.returns(as_windows(tokens, grid, side))

    def valid(self, reduction: Reduction, x: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> None:
        check_implementation(implementation(self))
        refuse_masks(attention_mask=attention_mask)

    def attention_line(self, run: Run, x: Tensor, **kwargs: Any) -> Tensor:
        y = self.attention(self.layernorm_before(x), attention_mask=run.attention_bias(x), **kwargs)[0]
        return x + y * self.gamma_1

    def mlp_line(self, x: Tensor) -> Tensor:
        return x + self.intermediate(self.layernorm_after(x)) * self.gamma_2


def as_tokens(windows: Tensor, grid: Grid, side: int) -> Tensor:
    """`(B, N, C)` in raster order from `(B W, n, C)`, with `side` windows in each direction."""
    inside = grid[0] // side, grid[1] // side
    return windows.unflatten(0, (-1, side, side)).unflatten(3, inside).transpose(2, 3).flatten(1, 4)


def as_windows(tokens: Tensor, grid: Grid, side: int) -> Tensor:
    cells = side, grid[0] // side, side, grid[1] // side
    return tokens.unflatten(1, cells).transpose(2, 3).flatten(3, 4).flatten(0, 2)


class TransformersLwDetr(HuggingFaceAdapter):
    name = "transformers_lw_detr"
    models = (LwDetrViTBackbone,)
    layers_at = "encoder.layer"
    reduced: ClassVar = {LwDetrViTLayer: ReducedLwDetrViTLayer}
    class_tokens = 0

    def refusals(self, model: Any) -> list[str]:
        reasons = super().refusals(model)
        if all(layer.window for layer in self.layers(model)):
            reasons.append("all its layers have windows, which need all tokens")
        return reasons

    def geometry(self, model: Any) -> Geometry:
        geometry, layers = super().geometry(model), self.layers(model)
        windowed = [layer.window for layer in layers]
        pairs = [
            macs // layer.num_windows if layer.window else macs
            for macs, layer in zip(geometry.costs.pairs, layers, strict=True)
        ]
        return dataclasses.replace(
            geometry,
            needs_all=frozenset(index for index, window in enumerate(windowed) if window),
            costs=dataclasses.replace(geometry.costs, pairs=tuple(pairs)),
        )

    def reads(self, model: Any, outer: Sequence[nn.Module]) -> Reads:
        return "all"

    def sliced(self, model: Any, counts: tuple[int, ...], placement: str) -> NoReturn:
        raise InvalidValueError("there is no free-slicing limit where tokens come as windows")


ADAPTER = TransformersLwDetr()

"""Layers that work on maps, most of them in windows, with decomposed relative positions: what SAM and ViTDet share.

Windows need all tokens, as their `needs_all` says. The others reduce. Reduced tokens pass between them as
`(B, M, C)`, which no other code sees: what has all tokens is a map again.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenreduce.budget.geometry import Costs, Geometry
from tokenreduce.errors import InvalidValueError
from tokenreduce.forward.noted import note_grid
from tokenreduce.forward.run import Run
from tokenreduce.forward.stack import join, leave

from .adapter import Reads
from .layered import LayeredAdapter, ReducedLayer
from .standing import keep_hold
from .weights import matrices, matrix_size

Grid = tuple[int, ...]


class MapLayer(ReducedLayer):
    """`ReducedLayer` for layers that take and give maps `(B, H, W, C)`, or `(B, C, H, W)` if `channels_first`."""

    channels_first: ClassVar[bool] = False

    def forward(self, *arguments: Any, **kwargs: Any) -> Any:
        reduction, layer, _ = self._tokenreduce
        x, *args = arguments
        original = super(ReducedLayer, self).forward  # type: ignore[misc]
        if layer == 0:
            note_grid(reduction, grid_of(x, self.channels_first), only=True)
        tokens = as_tokens(x, self.channels_first)
        run = join(reduction, layer, tokens, self.collected, lambda: self.valid(reduction, x, *args, **kwargs))
        if run is None:
            return original(x, *args, **kwargs)
        keep_hold(self, reduction)  # type: ignore[arg-type]
        handed_out = run.taps.tokens_of(x)
        tokens = run.enter(layer, tokens if handed_out is None else handed_out)
        if layer in reduction.geometry.needs_all:
            x = original(as_map(tokens, run.grid, self.channels_first), *args, **kwargs)
            tokens = as_tokens(first(x), self.channels_first)
        else:
            tokens = self.attention_line(run, run.reduce(layer, tokens, "pre"))
            tokens = self.mlp_line(run.reduce(layer, tokens, "mid"))
            tokens = run.reduce(layer, tokens, "post")
        tokens = leave(run, layer, tokens)
        if tokens.shape[1] < run.entered:
            return tokens
        return run.taps.returns(as_map(tokens, run.grid, self.channels_first))


class MapAttention:
    """The attention of these layers; goes in front of the library's class. Of a map the library's forward runs;
    afterwards the same is computed of tokens at any places."""

    qkv: Any
    proj: Any

    def forward(self, *args: Any, run: Run | None = None, **kwargs: Any) -> Any:
        """With a `run` the tokens are `(B, N, C)`, without one the library calls."""
        if run is None:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        x: Tensor = args[0]
        run.show_attention(lambda queries, keys: self.attend(run, queries.float(), keys.float()))
        if run.maps:
            return self.restated(run, x)
        return first(super().forward(as_map(x, run.grid, False))).flatten(1, 2)  # type: ignore[misc]

    def restated(self, run: Run, x: Tensor) -> Tensor:
        """The library's forward for tokens `(B, N, C)`."""
        shape = x.shape[0], x.shape[1], 3, heads_of(self), -1
        queries, keys, values = self.qkv(x).view(shape).permute(2, 0, 3, 1, 4).unbind(0)
        queries, keys, bias = self.attend(run, *self.normed(queries, keys))
        bias = None if bias is None else bias.to(queries.dtype)
        out = F.scaled_dot_product_attention(queries, keys, values, bias, self.dropped())
        return self.projected(out.transpose(1, 2).flatten(2))

    def normed(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """`(B, H, N, d)` as relative positions and hooks see them."""
        return queries, keys

    def attend(self, run: Run, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Queries, keys and additive logits as attention uses them."""
        bias = run.attention_bias(queries)
        if not hasattr(self, "rel_pos_h"):
            return queries, keys, bias
        tables = self.tables(run.grid)  # type: ignore[arg-type]
        origin = run.places.origin(queries.shape[0], queries.device)
        relative = relative_logits(queries, tables, origin)
        return queries, keys, relative if bias is None else relative + bias

    def tables(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Relative positions of rows `(H, H, d)` and columns `(W, W, d)` to each other."""
        raise NotImplementedError  # every library has its own

    def dropped(self) -> float:
        """The probability with which attention is dropped now."""
        return 0.0

    def projected(self, x: Tensor) -> Tensor:
        return self.proj(x)


def relative_logits(queries: Tensor, tables: tuple[Tensor, Tensor], origin: Tensor) -> Tensor:
    """`(B, H, N, N)`: what decomposed relative positions add to the logits of `queries (B, H, N, d)`, whose places in
    raster order are `origin (B, N)`: `q_i . R_h[y_i, y_j] + q_i . R_w[x_i, x_j]`."""
    width = tables[1].shape[0]
    parts = []
    for table, places in zip(tables, (origin // width, origin % width), strict=True):
        to_lines = torch.einsum("bhnd,bnkd->bhnk", queries, table.to(queries.dtype)[places])
        parts.append(to_lines.gather(-1, places[:, None, None, :].expand(*to_lines.shape[:3], -1)))
    return parts[0] + parts[1]


def grid_of(x: Tensor, channels_first: bool) -> Grid:
    return tuple(x.shape[2:] if channels_first else x.shape[1:3])


def as_tokens(x: Tensor, channels_first: bool) -> Tensor:
    """`(B, N, C)`; what is no map already stays."""
    if x.ndim == 3:
        return x
    return x.flatten(2).transpose(1, 2) if channels_first else x.flatten(1, 2)


def as_map(tokens: Tensor, grid: Grid | None, channels_first: bool) -> Tensor:
    assert grid is not None  # the first layer noted it
    return tokens.transpose(1, 2).unflatten(2, grid) if channels_first else tokens.unflatten(1, grid)


def first(output: Any) -> Tensor:
    """The first of a tuple of outputs."""
    return output[0] if isinstance(output, tuple) else output


class MapAdapter(LayeredAdapter):
    """An adapter for models whose layers work on maps; subclasses say where their parts are.

    `attention`: its name in a layer; `on_tokens`: what works on every token outside of the layers.
    """

    attention: ClassVar[str] = "attn"
    on_tokens: ClassVar[tuple[str, ...]]

    def grid(self, model: Any) -> Grid:
        """The grid of an image of the configured size."""
        raise NotImplementedError  # every family has its own

    def needs_all(self, model: Any) -> frozenset[int]:
        """The layers that need all tokens."""
        return frozenset(i for i, layer in enumerate(self.layers(model)) if layer.window_size > 0)

    def attention_of(self, layer: nn.Module) -> Any:
        return layer.get_submodule(self.attention)

    def restated(self, layer: Any, wanted: frozenset[str] | None = None) -> Sequence[nn.Module]:
        return [self.attention_of(layer)]

    def captures(self, model: Any, layer: Any) -> dict[str, tuple[nn.Module, str]]:
        qkv = self.attention_of(layer).qkv
        return {name: (qkv, f"fused_{name}") for name in ("queries", "keys", "values", "mean_keys")}

    def grid_capture(self, model: Any) -> None:
        """The first layer notes the grid."""

    def refusals(self, model: Any) -> list[str]:
        reasons = super().refusals(model)
        if len(self.needs_all(model)) == len(self.layers(model)):
            reasons.append("all its layers have windows or convolutions, which need all tokens")
        return reasons

    def lacks(self, model: Any) -> dict[str, str]:
        return {"class_attention": "the model has no class token"}

    def geometry(self, model: Any) -> Geometry:
        layers, grid = self.layers(model), self.grid(model)
        attentions = [self.attention_of(layer) for layer in layers]
        heads, width = heads_of(attentions[0]), attentions[0].qkv.in_features
        return Geometry(
            depth=len(layers),
            prefix=0,
            suffix=0,
            class_tokens=0,
            grid=grid,
            width=width,
            heads=heads,
            head_dim=width // heads,
            costs=self.costs(model, grid, width),
            needs_all=self.needs_all(model),
            follows_origin=any(knows_places(attention) for attention in attentions),
        )

    def costs(self, model: Any, grid: Grid, width: int) -> Costs:
        """Costs read off the modules; a token in windows has the same number of pairs whatever the others do, and
        padding of windows is shared out to all tokens."""
        layers, everywhere = self.layers(model), [model.get_submodule(name) for name in self.on_tokens]
        counted = {id(m) for part in (*layers, *everywhere) for m in part.modules()}
        attention, pairs, mlp = [], [], []
        for layer in layers:
            own, side = self.attention_of(layer), layer.window_size
            inner = matrices(own)
            mlp.append(matrices(layer) - inner)
            sides = (side, side) if side else grid
            inside = inner + (width * sum(sides) if hasattr(own, "rel_pos_h") else 0)
            if side:
                padded = prod(-(-length // side) * side for length in grid)
                inside = (inside + 2 * width * side**2) * padded // prod(grid)
            attention.append(inside)
            pairs.append(0 if side else 2 * width)
        return Costs(
            fixed=sum(matrix_size(m) for m in model.modules() if id(m) not in counted),
            per_token=sum(matrices(part) for part in everywhere),
            attention=tuple(attention),
            pairs=tuple(pairs),
            mlp=tuple(mlp),
        )

    def reads(self, model: Any, outer: Sequence[nn.Module]) -> Reads:
        return "all"

    def sliced(self, model: Any, counts: tuple[int, ...], placement: str) -> NoReturn:
        raise InvalidValueError("there is no free-slicing limit where layers work on maps")


def heads_of(attention: Any) -> int:
    return attention.num_heads if hasattr(attention, "num_heads") else attention.num_attention_heads


def knows_places(attention: Any) -> bool:
    """Whether attention depends on where tokens are."""
    return hasattr(attention, "rel_pos_h") or getattr(attention, "rope", None) is not None

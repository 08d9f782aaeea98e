"""`LayeredAdapter` and `ReducedLayer`: what families share whose model is a list of layers, each with an attention and
an MLP line.

A family restates the two residual lines of its layers and nothing else; attention, norms and MLPs stay the library's
own modules.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokenreduce.budget.counting import count_flops
from tokenreduce.budget.geometry import Costs
from tokenreduce.errors import InvalidValueError
from tokenreduce.forward.marks import Mark, mark, unmark
from tokenreduce.forward.noted import collected
from tokenreduce.forward.reduction import Reduction
from tokenreduce.forward.run import Run
from tokenreduce.forward.slicing import Slicing
from tokenreduce.forward.stack import join, leave

from .adapter import Adapter
from .classes import Classes, refuse_classes, swap, swap_back
from .hooks import add_hook, captured_by_hooks, remove_hooks


class ReducedLayer:
    """The forward of a layer with the reduction around and between its two lines; goes in front of the layer's class.

    `run` is the forward's `Run`, or a `Slicing`: what they share is `attention_bias`, `rows` and `pairs`.
    """

    _tokenreduce: Mark

    def attention_line(self, run: Run, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Attention and its residual, with the arguments that the layer was called with."""
        raise NotImplementedError  # every family has its own

    def mlp_line(self, x: Tensor) -> Tensor:
        """MLP and its residual."""
        raise NotImplementedError  # every family has its own

    def second_line(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`mlp_line` of a layer whose MLP reads arguments of the layer, too."""
        return self.mlp_line(x)

    def collected(self, reduction: Reduction) -> frozenset[int]:
        """The layers whose outputs other code collects in this forward."""
        return collected(reduction)

    def valid(self, reduction: Reduction, x: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
        """`(B, prefix + N + suffix)`, False for padding; None where nothing is padded. Raises for masks that cannot be
        honoured."""
        return None

    def forward(self, *arguments: Any, **kwargs: Any) -> Any:
        reduction, layer = self._tokenreduce
        x, *args = arguments
        run = join(reduction, layer, x, self.collected, lambda: self.valid(reduction, x, *args, **kwargs))
        if run is None:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        x = run.reduce(layer, run.enter(layer, x), "pre")
        x = self.attention_line(run, x, *args, **kwargs)
        x = self.second_line(run.reduce(layer, x, "mid"), *args, **kwargs)
        return leave(run, layer, run.reduce(layer, x, "post"))


class LayeredAdapter(Adapter):
    """An adapter for models that are a list of layers.

    `reduced`: what stands for each class of layers; `attentions`: what stands for each class of the attentions whose
    forward is restated, `restated`.
    """

    reduced: ClassVar[Classes]
    attentions: ClassVar[Classes] = {}

    def layers(self, model: Any) -> Sequence[Any]:
        """The layers, first to last."""
        raise NotImplementedError  # every family has its own

    def restated(self, model: Any) -> Sequence[nn.Module]:
        """The attentions in the layers whose class is swapped, too."""
        return ()

    def captures(self, model: Any, layer: Any) -> dict[str, tuple[nn.Module, str]]:
        """The modules of a layer that show keys, queries and values: the module and the hook, by entry of `Tokens`."""
        raise NotImplementedError  # every family has its own

    def grid_capture(self, model: Any) -> tuple[nn.Module, str] | None:
        """The module that shows the grid of an input, and the hook."""
        return None

    def video_capture(self, model: Any) -> tuple[nn.Module, str]:
        """The module that shows a video whose tubelets are the tokens, and the hook."""
        raise NotImplementedError  # only models of videos have one

    def refusals(self, model: Any) -> list[str]:
        layers = self.layers(model)
        if len(layers) == 0:
            return ["it has no layers"]
        reasons = refuse_classes("blocks are of class", layers, self.reduced)
        reasons = reasons or refuse_classes("attention is", self.restated(model), self.attentions)
        if any("forward" in vars(module) for layer in layers for module in layer.modules()):
            reasons.append("a forward method was replaced on its blocks by another tool; undo that first")
        return reasons

    def install(self, model: Any, reduction: Reduction) -> None:
        wanted = captured_by_hooks(reduction, self.lacks(model))
        grid = self.grid_capture(model)
        if grid is not None:
            add_hook(grid[0], reduction, grid[1])
        if self.videos and "pixels" in wanted:
            module, hook = self.video_capture(model)
            add_hook(module, reduction, hook)
        for index, layer in enumerate(self.layers(model)):
            mark(layer, reduction, index)
            for entry, (module, hook) in self.captures(model, layer).items():
                if entry in wanted:
                    add_hook(module, reduction, hook)
        swap(self.layers(model), self.reduced)
        swap(self.restated(model), self.attentions)

    def remove(self, model: Any) -> None:
        grid = self.grid_capture(model)
        if grid is not None:
            remove_hooks(grid[0])
        if self.videos:
            remove_hooks(self.video_capture(model)[0])
        swap_back(self.restated(model), self.attentions)
        swap_back(self.layers(model), self.reduced)
        for layer in self.layers(model):
            for module in layer.modules():
                remove_hooks(module)

    @contextmanager
    def sliced(self, model: Any, counts: tuple[int, ...], placement: str) -> Iterator[nn.Module]:
        geometry, layers = self.geometry(model), self.layers(model)
        if geometry.needs_all:
            raise InvalidValueError("there is no free-slicing limit where some layers need all tokens")
        if any(type(layer) not in self.reduced for layer in layers):
            raise InvalidValueError("the free-slicing limit is measured on the unpatched model; unpatch it first")
        slicing = Slicing(geometry, counts, placement)
        try:
            for index, layer in enumerate(layers):
                mark(layer, slicing, index)
            swap(layers, self.reduced)
            swap(self.restated(model), self.attentions)
            yield model
        finally:
            swap_back(self.restated(model), self.attentions)
            swap_back(layers, self.reduced)
            for layer in layers:
                unmark(layer)


def layered_costs(model: Any, layers: Sequence[Any], attention: str, embedding: nn.Module, width: int) -> Costs:
    """Costs read off the modules: every matrix of a layer works on each token, attention on each pair of tokens.

    `attention` names the layers' attention; what is neither in the layers nor in the patch `embedding` counts once.
    """
    whole = [sum(matrix_size(m) for m in layer.modules()) for layer in layers]
    inside = [sum(matrix_size(m) for m in layer.get_submodule(attention).modules()) for layer in layers]
    counted = {id(m) for part in (*layers, embedding) for m in part.modules()}
    return Costs(
        fixed=sum(matrix_size(m) for m in model.modules() if id(m) not in counted),
        per_token=sum(matrix_size(m) for m in embedding.modules()),
        attention=tuple(inside),
        pairs=(2 * width,) * len(layers),
        mlp=tuple(total - part for total, part in zip(whole, inside, strict=True)),
    )


def stem_macs(stem: nn.Module, height: int, width: int) -> int:
    """MACs of a patch embedding on one image, for stems with convolutions on other grids than the tokens'."""
    # A copy, so that batch norms in training see no image of ours.
    stem = copy.deepcopy(stem).to("meta")
    channels = next(m.in_channels for m in stem.modules() if isinstance(m, nn.Conv2d))
    dtype = next(stem.parameters()).dtype
    return count_flops(stem, torch.zeros(1, channels, height, width, device="meta", dtype=dtype)).total


def matrix_size(module: Any) -> int:
    """Multiply-adds a token of a linear layer (quantised ones too), of a patch convolution or of the projections of an
    `nn.MultiheadAttention`, whose output projection is a module of its own."""
    if isinstance(module, (nn.Conv2d, nn.Conv3d)):
        return module.weight.numel()
    if isinstance(module, nn.MultiheadAttention) and isinstance(module.in_proj_weight, torch.Tensor):
        return module.in_proj_weight.numel()
    if hasattr(module, "in_features") and hasattr(module, "out_features") and not list(module.children()):
        return int(module.in_features) * int(module.out_features)
    return 0

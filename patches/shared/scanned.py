"""What families of state-space models share: layers of one residual line, whose mixer scans the tokens in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokenreduce.budget.geometry import Costs, Geometry
from tokenreduce.forward.reduction import Reduction
from tokenreduce.forward.run import Run
from tokenreduce.forward.slicing import Slicing
from tokenreduce.forward.stack import join, leave
from tokenreduce.reducers.entries import ATTENTION

from .classes import Classes, refuse_classes
from .hooks import add_hook
from .layered import LayeredAdapter, ReducedLayer
from .standing import keep_hold

NO_ATTENTION = "the model is a state-space model, which has no attention"


class ScannedLayer(ReducedLayer):
    """The forward of a layer of one line. Between layers protected tokens stand in front; before the first and after
    the last one they stand where the model has them."""

    def mixed(self, run: Run | Slicing, x: Tensor, *args: Any) -> Tensor:
        """The layer's line on rows `[protected | image tokens left]`, with what the layer was called with beside them;
        `run.walks` or `run.grid_walks` says how to scan them."""
        raise NotImplementedError  # every family has its own

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        reduction, layer, _ = self._tokenreduce
        geometry = reduction.geometry
        middle = geometry.ordered == "middle"
        rows = to_front(x) if middle and layer == 0 else x
        run = join(reduction, layer, rows, self.collected)
        if run is None:
            return super(ReducedLayer, self).forward(x, *args)  # type: ignore[misc]
        keep_hold(self, reduction)  # type: ignore[arg-type]
        rows = run.reduce(layer, run.enter(layer, rows), "pre")
        rows = self.mixed(run, rows, *args)
        rows = run.reduce(layer, run.reduce(layer, rows, "mid"), "post")
        rows = leave(run, layer, rows)
        last = layer == getattr(run, "depth", geometry.depth) - 1
        return to_middle(rows) if middle and last else rows


class ScannedAdapter(LayeredAdapter):
    """An adapter for models whose layers are scans."""

    scans = True
    mixers: ClassVar[Classes] = {}  # the classes of mixers that the family knows
    step_hook: ClassVar[str] = "time_step"  # that makes time steps of what `step_projections` give

    def layers(self, model: Any) -> Sequence[Any]:
        return model.layers

    def refuse_parts(self, model: Any, layers: Sequence[Any]) -> list[str]:
        others = refuse_classes("mixers are of class", [layer.mixer for layer in layers], self.mixers)
        return others or super().refuse_parts(model, layers)

    def scanned(self, model: Any, costs: Costs, class_tokens: int, ordered: str) -> Geometry:
        """The geometry of a model with `layers`, `grid` and `num_features`, and class tokens alone before its image
        tokens; where there is attention it tells of heads, here of none."""
        width = model.num_features
        grid = tuple(model.grid)
        return Geometry(len(model.layers), class_tokens, 0, class_tokens, grid, width, 1, width, costs, ordered=ordered)

    def lacks(self, model: Any) -> dict[str, str]:
        return dict.fromkeys((*ATTENTION, "keys", "queries", "values"), NO_ATTENTION)

    def step_projections(self, layer: Any) -> Sequence[nn.Module]:
        """The projections that give the time steps before softplus, that of the forward direction first."""
        raise NotImplementedError  # every family has its own

    def captures(self, model: Any, layer: Any) -> dict[str, tuple[nn.Module, str]]:
        return {"scan_output": (layer.mixer.out_proj, "scan_output")}

    def watch(self, model: Any, layer: Any, reduction: Reduction, wanted: frozenset[str]) -> None:
        super().watch(model, layer, reduction, wanted)
        if "time_step" in wanted or reduction.scan.gap == "frozen":
            for module in self.step_projections(layer):
                add_hook(module, reduction, self.step_hook)


def to_front(x: Tensor) -> Tensor:
    """`[class token | image tokens]` of `(B, N + 1, C)` with the class token at N // 2 of N image tokens."""
    place = (x.shape[1] - 1) // 2
    return torch.cat([x[:, place : place + 1], x[:, :place], x[:, place + 1 :]], 1)


def to_middle(x: Tensor) -> Tensor:
    """The class token back at N // 2 of N image tokens."""
    place = (x.shape[1] - 1) // 2
    return torch.cat([x[:, 1 : place + 1], x[:, :1], x[:, place + 1 :]], 1)

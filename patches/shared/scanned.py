"""What families of state-space models share: layers of one residual line, whose mixer scans the tokens in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokenreduce.forward.reduction import Reduction
from tokenreduce.forward.run import Run
from tokenreduce.forward.slicing import Slicing
from tokenreduce.forward.stack import join, leave
from tokenreduce.reducers.entries import ATTENTION

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
    step_hook: ClassVar[str] = "time_step"  # that makes time steps of what `step_projections` give

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

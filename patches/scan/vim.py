"""`tokenreduce.models.vim.VisionMamba`: Vim and the image models of VideoMamba."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from tokenreduce.budget.geometry import Costs, Geometry
from tokenreduce.forward.run import Run
from tokenreduce.forward.slicing import Slicing
from tokenreduce.models.vim import VimBlock, VisionMamba
from tokenreduce.models.vim_mixer import VimMixer

from ..shared.adapter import Reads
from ..shared.scanned import ScannedAdapter, ScannedLayer
from ..shared.weights import matrices, matrix_size


class ReducedVimBlock(ScannedLayer, VimBlock):
    """`VimBlock`: norm, mixer, residual."""

    def mixed(self, run: Run | Slicing, x: Tensor, *args: Any) -> Tensor:
        walks = run.walks(x, self.mixer.taps)
        return x + self.dropped(self.mixer(self.norm(x), walks))


class Vim(ScannedAdapter):
    """Adapter for `VisionMamba`."""

    reduced: ClassVar = {VimBlock: ReducedVimBlock}
    mixers: ClassVar = {VimMixer: VimMixer}

    name = "vim"
    family = "tokenreduce VisionMamba (Vim, image models of VideoMamba)"

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, VisionMamba)

    def step_projections(self, layer: Any) -> Sequence[nn.Module]:
        return [layer.mixer.dt_proj, layer.mixer.dt_proj_b]

    def grid_capture(self, model: Any) -> tuple[nn.Module, str]:
        return model.patch_embed.proj, "grid"

    def geometry(self, model: Any) -> Geometry:
        return self.scanned(model, model_costs(model), 1, "middle" if model.class_place else "first")

    def reads(self, model: Any, outer: Sequence[nn.Module]) -> Reads:
        return "tokens" if outer else "protected"


def model_costs(model: Any) -> Costs:
    """Costs read off the modules, and of both scans and convolutions: everything is linear in the tokens."""
    layers = [matrices(layer) + scan_macs(layer.mixer) for layer in model.layers]
    none = (0,) * len(layers)
    fixed = sum(matrix_size(m) for m in model.head.modules())
    return Costs(fixed, matrices(model.patch_embed), tuple(layers), none, none)


def scan_macs(mixer: Any) -> int:
    """MACs a token of the scans, 4 for each state and direction, and of the convolutions."""
    return 2 * mixer.inner * (4 * mixer.states + mixer.taps)


ADAPTER = Vim()

"""`tokenreduce.models.plain_mamba.PlainMamba`, whose scans are snakes over the grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from tokenreduce.budget.geometry import Costs, Geometry
from tokenreduce.forward.run import Run
from tokenreduce.forward.slicing import Slicing
from tokenreduce.maps.grid_walks import GridWalks
from tokenreduce.models.plain_mamba import PlainMamba, PlainMambaLayer
from tokenreduce.models.plain_mamba_mixer import PlainMambaMixer

from ..shared.adapter import Reads
from ..shared.scanned import ScannedAdapter, ScannedLayer
from ..shared.weights import is_convolution, matrices, matrix_size, stem_macs

DIRECTIONS = 4


class ReducedPlainMambaLayer(ScannedLayer, PlainMambaLayer):
    """`PlainMambaLayer` on what is left of the grid.

    Its convolutions see the whole grid, filled as `scan_conv` says; those of L1's first layer too, where tokens left
    before it. Each direction visits the tokens that are left in the order of its own snake. Its step t has the time
    step, B and C of token t of the raster, or of what stands for it.
    """

    def mixed(self, run: Run | Slicing, x: Tensor, *args: Any) -> Tensor:
        whole: GridWalks = args[0]
        return PlainMambaLayer.forward(self, x, run.grid_walks(x, whole))


class PlainMambaAdapter(ScannedAdapter):
    """Adapter for `PlainMamba`."""

    reduced: ClassVar = {PlainMambaLayer: ReducedPlainMambaLayer}
    mixers: ClassVar = {PlainMambaMixer: PlainMambaMixer}

    name = "plain_mamba"
    family = "tokenreduce PlainMamba"
    step_hook = "biased_time_step"

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, PlainMamba)

    def scan_refusals(self, model: Any) -> dict[str, str]:
        return {
            "compact": "its convolutions are on the grid, which tokens that are left do not fill",
            "frozen": "a step has the time step of a token of the raster and not of the token that it visits, so that "
            "a missing token has none of its own",
        }

    def step_projections(self, layer: Any) -> Sequence[nn.Module]:
        return [layer.mamba.dt_proj]

    def grid_capture(self, model: Any) -> tuple[nn.Module, str]:
        return model.patch_embed.projection, "grid"

    def geometry(self, model: Any) -> Geometry:
        return self.scanned(model, model_costs(model), 0, "first")

    def reads(self, model: Any, outer: Sequence[nn.Module]) -> Reads:
        return "tokens"


def model_costs(model: Any) -> Costs:
    """Costs read off the modules, and of the scans. Convolutions run on all places of the grid, whatever is left."""
    on_grid = sum(matrix_size(m) for layer in model.layers for m in layer.modules() if is_convolution(m))
    layers = [
        sum(matrix_size(m) for m in layer.modules() if not is_convolution(m)) + scan_macs(layer.mamba)
        for layer in model.layers
    ]
    size = [side * 2 * model.patch_embed.cell for side in model.grid]
    places = model.grid[0] * model.grid[1]
    none = (0,) * len(layers)
    embedding = stem_macs(model.patch_embed, *size) // places
    return Costs(matrices(model.head), embedding + on_grid, tuple(layers), none, none)


def scan_macs(mixer: Any) -> int:
    """MACs a token of the scans, 4 for each state and direction."""
    return DIRECTIONS * 4 * mixer.inner * mixer.states


ADAPTER = PlainMambaAdapter()

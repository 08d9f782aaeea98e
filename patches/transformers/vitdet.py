"""transformers ViTDet: `VitDetModel` and `VitDetBackbone`, the latter inside VitMatte too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.models.vitdet.modeling_vitdet import (
    VitDetAttention,
    VitDetBackbone,
    VitDetEncoder,
    VitDetLayer,
    VitDetModel,
    get_rel_pos,
)

from tokenreduce.forward.marks import Mark
from tokenreduce.forward.noted import collect_layers
from tokenreduce.forward.reduction import Reduction
from tokenreduce.forward.run import Run

from ..shared.standing import replaced_forward
from ..shared.windows import Grid, MapAdapter, MapAttention, MapLayer
from ._collector import refuse_attentions
from ._layers import HuggingFaceAdapter


class ReducedVitDetEncoder(VitDetEncoder):
    """It collects the maps of its layers itself, and must tell them."""

    _tokenreduce: Mark

    def forward(
        self,
        hidden_states: Tensor,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
    ) -> Any:
        before = collect_layers(self._tokenreduce.reduction if output_hidden_states else None)
        try:
            return super().forward(hidden_states, output_attentions, output_hidden_states, return_dict)
        finally:
            collect_layers(*before)


class ReducedVitDetLayer(MapLayer, VitDetLayer):
    channels_first = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        return output if isinstance(output, tuple) else (output,)

    def valid(
        self, reduction: Reduction, x: Tensor, output_attentions: bool = False, *args: Any, **kwargs: Any
    ) -> None:
        if output_attentions:
            refuse_attentions()

    def attention_line(self, run: Run, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x + self.drop_path(self.attention(self.norm1(x), run=run))

    def mlp_line(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ReducedVitDetAttention(MapAttention, VitDetAttention):
    def tables(self, grid: Grid) -> tuple[Tensor, Tensor]:
        return get_rel_pos(grid[0], grid[0], self.rel_pos_h), get_rel_pos(grid[1], grid[1], self.rel_pos_w)


class TransformersVitDet(MapAdapter, HuggingFaceAdapter):
    """Layers that end in convolutions need all tokens as those with windows do; all outputs are maps."""

    name = "transformers_vitdet"
    models = (VitDetModel, VitDetBackbone)
    layers_at = "encoder.layer"
    attention = "attention"
    reduced: ClassVar = {VitDetLayer: ReducedVitDetLayer}
    attentions: ClassVar = {VitDetAttention: ReducedVitDetAttention}
    containers: ClassVar = {VitDetEncoder: ReducedVitDetEncoder}
    on_tokens = ("embeddings",)

    def grid(self, model: Any) -> Grid:
        return HuggingFaceAdapter.grid(self, model)

    def needs_all(self, model: Any) -> frozenset[int]:
        convolved = (i for i, layer in enumerate(self.layers(model)) if layer.use_residual_block)
        return super().needs_all(model) | frozenset(convolved)

    def refusals(self, model: Any) -> list[str]:
        reasons = super().refusals(model)
        if type(model.encoder) not in (VitDetEncoder, ReducedVitDetEncoder) or replaced_forward(model.encoder):
            reasons.append("its encoder was changed by another tool; undo that first")
        return reasons

    def surrounds(self, model: Any) -> Sequence[nn.Module]:
        return [model.encoder]


ADAPTER = TransformersVitDet()

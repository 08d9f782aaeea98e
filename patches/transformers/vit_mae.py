"""transformers `ViTMAEModel`: the encoder of masked auto-encoding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from transformers.models.vit_mae.modeling_vit_mae import ViTMAELayer, ViTMAEModel

from tokenreduce.budget.geometry import Geometry

from ._layers import HuggingFaceAdapter
from ._prenorm import PrenormLayer


class ReducedViTMAELayer(PrenormLayer, ViTMAELayer):
    """`ViTMAELayer` of the encoder, reduced; the decoder's stay as they are."""


class TransformersViTMAE(HuggingFaceAdapter):
    """Its tokens are a random subset of the image's, shuffled even where the subset is everything: they are a row, not
    a grid. The decoder needs all of them in that order."""

    name = "transformers_vit_mae"
    models = (ViTMAEModel,)
    reduced: ClassVar = {ViTMAELayer: ReducedViTMAELayer}

    def grid_capture(self, model: Any) -> None:
        return None

    def grid(self, model: Any) -> tuple[int, ...]:
        height, width = super().grid(model)
        return (int(height * width * (1 - model.config.mask_ratio)),)

    def lacks(self, model: Any) -> dict[str, str]:
        reason = "the model's tokens are a random subset of the image's in random order"
        return super().lacks(model) | dict.fromkeys(("grid", "positions"), reason)

    def geometry(self, model: Any) -> Geometry:
        geometry = super().geometry(model)
        height, width = super().grid(model)
        embedding = geometry.costs.per_token * height * width // geometry.count  # masked patches are embedded too
        return replace(geometry, costs=replace(geometry.costs, per_token=embedding))

    def prop_attn(self, model: Any) -> bool:
        return False  # such weights were measured to lose accuracy with the bias (ToMe, table on MAE models)


ADAPTER = TransformersViTMAE()

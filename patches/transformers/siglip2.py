"""transformers SigLIP 2 (NaFlex): images of different shapes in one batch, padded to the same number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn
from transformers.models.siglip2.modeling_siglip2 import Siglip2EncoderLayer, Siglip2VisionModel

from ..shared.adapter import Reads
from ._towers import TowerLayer
from .siglip import TransformersSiglip


class ReducedSiglip2EncoderLayer(TowerLayer, Siglip2EncoderLayer):
    """`Siglip2EncoderLayer`, reduced."""


class TransformersSiglip2(TransformersSiglip):
    """What reads its tokens uses the mask of the input: they are always restored."""

    name = "transformers_siglip2"
    models = (Siglip2VisionModel,)  # type: ignore[assignment]
    reduced: ClassVar = {Siglip2EncoderLayer: ReducedSiglip2EncoderLayer}

    def embedding(self, model: Any) -> nn.Module:
        return model.embeddings.patch_embedding

    def grid_capture(self, model: Any) -> None:
        """Every image has its own grid."""

    def grid(self, model: Any) -> tuple[int, ...]:
        return (model.config.num_patches,)

    def lacks(self, model: Any) -> dict[str, str]:
        grids = dict.fromkeys(("grid", "positions"), "every image of a batch has its own grid")
        return {"class_attention": "the model has no class token"} | grids

    def reads(self, model: Any, outer: Sequence[nn.Module]) -> Reads:
        return "all"


ADAPTER = TransformersSiglip2()

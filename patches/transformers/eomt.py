"""transformers EoMT: a ViT whose last `num_blocks` layers also hold the queries and predict masks from the grid.

Only the layers before them reduce: tokens are all there again when the queries enter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar, NoReturn

from torch import nn
from transformers.models.eomt.modeling_eomt import EomtForUniversalSegmentation, EomtLayer

from tokenreduce.budget.geometry import Geometry
from tokenreduce.errors import InvalidValueError

from ..shared.adapter import Reads
from ..shared.weights import matrix_size
from ._layers import HuggingFaceAdapter
from ._layerscale import LayerScaleLayer


class ReducedEomtLayer(LayerScaleLayer, EomtLayer):
    """`EomtLayer`, reduced."""


class TransformersEomt(HuggingFaceAdapter):
    name = "transformers_eomt"
    models = (EomtForUniversalSegmentation,)
    reduced: ClassVar = {EomtLayer: ReducedEomtLayer}

    def layers(self, model: Any) -> Sequence[Any]:
        return model.layers[: len(model.layers) - model.config.num_blocks]

    def refusals(self, model: Any) -> list[str]:
        if len(self.layers(model)) == 0:
            return [
                "its queries enter before the first layer (num_blocks), and all layers with queries need all tokens"
            ]
        return super().refusals(model)

    def prefix(self, model: Any) -> int:
        return model.embeddings.num_prefix_tokens

    def geometry(self, model: Any) -> Geometry:
        geometry = super().geometry(model)
        return dataclasses.replace(
            geometry, costs=dataclasses.replace(geometry.costs, fixed=macs_after(model, geometry))
        )

    def reads(self, model: Any, outer: Sequence[nn.Module]) -> Reads:
        return "all"

    def sliced(self, model: Any, counts: tuple[int, ...], placement: str) -> NoReturn:
        raise InvalidValueError("there is no free-slicing limit where masks are predicted from all tokens")


def macs_after(model: Any, geometry: Geometry) -> int:
    """MACs of what follows the reducing layers: layers with queries, and a prediction at the end and in front of each
    of these layers whose attention is masked."""
    image, queries = prod(geometry.grid), model.config.num_queries
    tokens, last = image + geometry.prefix + queries, model.layers[geometry.depth :]
    matrices = sum(matrix_size(m) for layer in last for m in layer.modules())
    layers = matrices * tokens + len(last) * 2 * geometry.width * tokens**2
    heads = sum(matrix_size(m) for part in (model.class_predictor, model.mask_head) for m in part.modules())
    pixels, upscaling = image, 0
    for block in model.upscale_block.block:  # doubles height and width, then convolves
        upscaling += pixels * (block.conv1.weight.numel() + 4 * block.conv2.weight.numel())
        pixels *= 4
    prediction = queries * heads + upscaling + queries * geometry.width * pixels
    return layers + prediction * (1 + int((model.attn_mask_probs > 0).sum()))


ADAPTER = TransformersEomt()

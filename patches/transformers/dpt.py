"""transformers `DPTModel`, inside the depth and segmentation models, which read several of its layers as maps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.models.dpt.modeling_dpt import (
    DPTModel,
    DPTSelfAttention,
    DPTViTHybridEmbeddings,
    DPTViTLayer,
    eager_attention_forward,
)

from tokenreduce.budget.counting import count_flops
from tokenreduce.budget.geometry import Geometry

from ..shared.weights import matrices
from ._layers import pair
from ._unmasked import BiasedSelfAttention, UnmaskedAdapter, UnmaskedLayer


class BiasedDPTSelfAttention(BiasedSelfAttention, DPTSelfAttention):
    eager = staticmethod(eager_attention_forward)


class ReducedDPTViTLayer(UnmaskedLayer, DPTViTLayer):
    """`DPTViTLayer`, reduced."""


class TransformersDPT(UnmaskedAdapter):
    """In the hybrid, tokens come from the last map of a convolutional network, which the budget counts as part of the
    embedding."""

    name = "transformers_dpt"
    models = (DPTModel,)
    reduced: ClassVar = {DPTViTLayer: ReducedDPTViTLayer}
    attentions: ClassVar = {DPTSelfAttention: BiasedDPTSelfAttention}

    def embedding(self, model: Any) -> nn.Module:
        embeddings = model.embeddings
        return embeddings.projection if is_hybrid(model) else embeddings.patch_embeddings.projection

    def geometry(self, model: Any) -> Geometry:
        geometry = super().geometry(model)
        if not is_hybrid(model):
            return geometry
        convolutions = model.embeddings.backbone
        weight, size = next(convolutions.parameters()), pair(model.config.image_size)
        images = torch.zeros(1, model.config.num_channels, *size, device=weight.device, dtype=weight.dtype)
        costs = geometry.costs
        return replace(
            geometry,
            costs=replace(
                costs,
                fixed=costs.fixed - matrices(convolutions),
                per_token=costs.per_token + count_flops(convolutions, images).total // geometry.count,
            ),
        )


def is_hybrid(model: Any) -> bool:
    return isinstance(model.embeddings, DPTViTHybridEmbeddings)


ADAPTER = TransformersDPT()

"""transformers Qwen3-VL: features of inner layers of the tower are added after the first layers of the language
model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from tokenreduce.forward.language.passage import Passage
from tokenreduce.forward.language.planning import Removal

from ._qwen import QwenAdapter


class TransformersQwen3VL(QwenAdapter):
    name = "transformers_qwen3_vl"
    models = (Qwen3VLModel,)

    def rows(self, given: dict[str, Any], removal: Removal, passage: Passage) -> dict[str, Any]:
        where, added = given.get("visual_pos_masks"), given.get("deepstack_visual_embeds")
        if where is None or added is None:
            return {}
        where = where.to(passage.index.device)
        left = where.gather(1, passage.index)

        def of_rows(features: Tensor) -> Tensor:
            features = features.to(where.device)
            spread = torch.zeros(*where.shape, features.shape[-1], dtype=features.dtype, device=where.device)
            spread = spread.masked_scatter(where[..., None], features)
            return passage.rows(removal.carry(spread))[left]

        return {"visual_pos_masks": left, "deepstack_visual_embeds": [of_rows(features) for features in added]}


ADAPTER = TransformersQwen3VL()

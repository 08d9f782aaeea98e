"""transformers Qwen2.5-VL."""

from __future__ import annotations

from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from ._qwen import QwenAdapter


class TransformersQwen25VL(QwenAdapter):
    name = "transformers_qwen2_5_vl"
    models = (Qwen2_5_VLModel,)
    within = True


ADAPTER = TransformersQwen25VL()

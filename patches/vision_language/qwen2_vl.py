"""transformers Qwen2-VL."""

from __future__ import annotations

from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

from ._qwen import QwenAdapter


class TransformersQwen2VL(QwenAdapter):
    name = "transformers_qwen2_vl"
    models = (Qwen2VLModel,)
    within = True


ADAPTER = TransformersQwen2VL()

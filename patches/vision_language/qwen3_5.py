"""transformers Qwen3.5: some layers have linear attention, and no rows in the cache."""

from __future__ import annotations

from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5Model

from ._qwen import QwenAdapter


class TransformersQwen35(QwenAdapter):
    name = "transformers_qwen3_5"
    models = (Qwen3_5Model,)


ADAPTER = TransformersQwen35()
